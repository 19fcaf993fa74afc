//! Several files as one policy: what merges, what collides, and which kind may stand where.
//! Tests of `load` with presets; the merge itself is in `preset`.

use super::*;

const HEAD: &str = "version: 1\n";

fn files(texts: &[(&str, &str)]) -> Result<Loaded, Vec<Diagnostic>> {
    let texts: Vec<(Arc<str>, String)> =
        texts.iter().map(|(name, text)| ((*name).into(), (*text).to_owned())).collect();
    load_texts(&texts)
}

const PRESET: &str = "preset: { name: a }\nnetwork_policies:\n  a:\n    endpoints:\n      \
                      - { host: a.example.com, port: 443 }\n    binaries: [{ path: /usr/bin/a }]\n";

#[test]
fn presets_merge_by_key_and_twice_the_same_is_once() {
    let loaded = files(&[("p.yaml", HEAD), ("a.yaml", PRESET), ("b.yaml", PRESET)]).unwrap();
    assert_eq!(loaded.kind, Kind::Policy);
    assert_eq!(loaded.policy.network.len(), 1);
    let endpoint = loaded.policy.network.first().unwrap().endpoints.first().unwrap();
    assert_eq!(endpoint.origin().to_string(), "a.yaml:5:9");
}

#[test]
fn one_key_with_two_meanings_names_both_files() {
    let other = PRESET.replace("443", "444");
    let all = files(&[("p.yaml", HEAD), ("a.yaml", PRESET), ("b.yaml", &other)]).unwrap_err();
    let texts: Vec<String> = all.iter().map(Diagnostic::to_string).collect();
    assert_eq!(
        texts,
        ["b.yaml:3:3: error: `a` is in a.yaml:3:3 too, with other content; rename one of them; \
          both will hold"]
    );
}

#[test]
fn a_policy_is_no_preset_and_a_preset_is_no_policy() {
    let all = files(&[("p.yaml", HEAD), ("q.yaml", HEAD)]).unwrap_err();
    assert!(all.first().unwrap().message.contains("not a preset"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("preset.yaml");
    std::fs::write(&path, PRESET).unwrap();
    let all = load(&path, &[]).unwrap_err();
    assert!(all.first().unwrap().remedy.as_deref().unwrap().contains("--preset"));
    assert_eq!(load_any(&path, &[]).unwrap().kind, Kind::Preset);
}
