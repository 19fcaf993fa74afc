//! A preset goes into a policy of any layout, or the policy stays as it is; and it comes out to the byte.

use proptest::prelude::*;

use super::*;
use crate::presets::preset;

fn added_to(text: &str, name: &str) -> Result<String, Vec<Diagnostic>> {
    let preset = preset(name).unwrap();
    add((&"p.yaml".into(), text), name, (&name.into(), preset.text))
}

fn removed_from(text: &str, name: &str) -> String {
    remove((&"p.yaml".into(), text), name).unwrap()
}

#[test]
fn a_policy_without_a_section_gets_one_and_loses_it_again() {
    for text in [
        "version: 1",
        "version: 1\n",
        "version: 1\r\n",
        "version: 1\n\n\n",
        "version: 1\nmode: audit # x\n",
    ] {
        let one = added_to(text, "slack").unwrap();
        let both = added_to(&one, "telegram").unwrap();
        assert_eq!(added(&both), ["slack", "telegram"]);
        assert_eq!(removed_from(&removed_from(&both, "slack"), "telegram"), text);
        assert_eq!(removed_from(&removed_from(&both, "telegram"), "slack"), text);
    }
}

#[test]
fn what_cannot_be_added_says_why_and_what_to_do() {
    let with = added_to("version: 1\n", "slack").unwrap();
    for (text, says) in [
        (with.as_str(), "clawbox preset remove slack"),
        ("version: 1\nnetwork_policies: {}\n", "on lines of its own"),
        ("version: 1\nnetwork_policies: { a: {} }\n", "on lines of its own"),
        ("version: 1\n\"network_policies\":\n  a: {}\n", "on lines of its own"),
        ("version: 1\nnetwork_policies:\n  slack: {}\n", "with other content"),
        ("preset: { name: x }\nnetwork_policies: {}\n", "version: 1"),
        ("version: 1\nmode: x\n", "write one of"),
    ] {
        let said = added_to(text, "slack").unwrap_err();
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|said| said.contains(says)), "{text}: {said:?}");
    }
    let error = remove((&"p.yaml".into(), "version: 1\n"), "slack").unwrap_err();
    assert!(error.first().unwrap().to_string().contains("has put no preset"));
}

fn policies() -> impl Strategy<Value = String> {
    let entry = |indent: usize, key: usize, comment: bool| {
        let indent = " ".repeat(indent);
        let comment = if comment { format!("{indent}# why\n\n") } else { String::new() };
        format!(
            "{comment}{indent}k{key}:\n{indent} endpoints: [{{ host: k{key}.example, port: 1 }}]\n{indent} binaries: [{{ path: /usr/bin/k }}]\n"
        )
    };
    (
        1..8usize,
        proptest::collection::vec(any::<bool>(), 1..4),
        proptest::sample::select(vec![
            "",
            "# head\n",
            "mode: audit\n\n",
            "listen: { ports: [1] }\n",
        ]),
        proptest::sample::select(vec![
            "",
            "\n",
            "# tail",
            "limits: { pids: 5 }",
            "\n\nlimits:\n  pids: 5\n",
            "  # deep\n",
        ]),
        any::<bool>(),
    )
        .prop_map(move |(indent, entries, head, tail, returns)| {
            let entries: String = entries
                .iter()
                .enumerate()
                .map(|(key, comment)| entry(indent, key, *comment))
                .collect();
            let text = format!("version: 1\n{head}network_policies: # all\n{entries}{tail}");
            if returns { text.replace('\n', "\r\n") } else { text }
        })
}

proptest! {
    #[test]
    fn to_add_presets_and_to_remove_them_in_any_order_gives_back_the_same_bytes(
        text in policies(),
        names in proptest::sample::subsequence(vec!["slack", "github", "jira", "ollama"], 1..4).prop_shuffle(),
        order in any::<proptest::sample::Index>(),
    ) {
        let mut changed = text.clone();
        for name in &names {
            changed = added_to(&changed, name).unwrap();
        }
        let mut left = names.clone();
        left.rotate_left(order.index(names.len()));
        for name in &left {
            changed = removed_from(&changed, name);
        }
        prop_assert_eq!(changed, text);
    }
}
