//! Whatever bytes a policy file holds, loading it ends, without a panic, in findings fit to print.
//! Random bytes, random text, and a real policy with random edits.

use proptest::prelude::*;

use super::*;

/// Every finding has to be fit to print: a place, one line, a way out.
fn well_formed(result: Result<Loaded, Vec<Diagnostic>>) {
    let diagnostics = match result {
        Ok(loaded) => loaded.diagnostics,
        Err(diagnostics) => {
            assert!(!diagnostics.is_empty());
            diagnostics
        }
    };
    for diagnostic in diagnostics {
        assert!(!diagnostic.to_string().contains('\n'), "{diagnostic:?}");
        assert!(diagnostic.severity == Severity::Note || diagnostic.remedy.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(text) = source::check_text("p.yaml", &bytes) {
            well_formed(parse_str("p.yaml", text));
        }
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[ -~\n\t&*:{}\\[\\]é]{0,200}") {
        well_formed(parse_str("p.yaml", &text));
    }

    #[test]
    fn a_mutated_policy_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<char>(), 0..3u8), 1..8)
    ) {
        let mut text: Vec<char> = include_str!("testdata/everything.yaml").chars().collect();
        for (at, with, how) in edits {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match how {
                0 => { text.remove(at); }
                1 => text.insert(at, with),
                _ => text.truncate(at.max(1)),
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(loaded) = parse_str("p.yaml", &text) {
            let _ = crate::compile::compile(&loaded.policy, 1);
        } else {
            well_formed(parse_str("p.yaml", &text));
        }
    }
}
