//! Command lines without what they give away: values that are called a secret, credentials in URLs and
//! headers, and what looks like a token by itself. For a trail it is better to hide too much.

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Words in the name of what is secret.
const SECRET: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "credential",
    "private-key",
    "private_key",
    "access-key",
    "access_key",
];

/// How tokens begin that are secret whatever they are called.
const TOKENS: [&str; 14] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "sk-",
    "xoxb-",
    "xoxp-",
    "AKIA",
    "ASIA",
    "eyJ",
    "npm_",
    "pypi-",
];

/// A shorter one is a word.
const SHORTEST_TOKEN: usize = 16;

/// The arguments of a program start, which are NUL-terminated and may be cut, as they may be told.
#[must_use]
pub fn arguments(bytes: &[u8], is_cut: bool) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut told = words(bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy));
    if is_cut {
        // The cut may go through a secret that is then not known for one.
        if let Some(last) = told.last_mut() {
            last.push('…');
        }
    }
    told
}

/// A command line as it may be told.
#[must_use]
pub fn words(all: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let mut is_value = false;
    let mut told = |word: &str| {
        let hides = std::mem::take(&mut is_value) && !word.is_empty();
        is_value = is_flag_of_secret(word);
        if hides { HIDDEN.to_owned() } else { masked(word) }
    };
    all.into_iter().map(|word| told(word.as_ref())).collect()
}

/// `--token`, whose value is the next word.
fn is_flag_of_secret(word: &str) -> bool {
    let is_user = matches!(word, "-u" | "--user" | "--proxy-user" | "-U");
    is_user || (word.starts_with('-') && !word.contains('=') && names_secret(word))
}

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|secret| name.contains(secret))
        || matches!(name.trim_start_matches('-'), "auth" | "authorization" | "pass" | "key" | "pw")
}

/// One word.
fn masked(word: &str) -> String {
    if let Some((name, value)) = word.split_once('=')
        && !value.is_empty()
        && !name.contains("://")
        && names_secret(name.rsplit([' ', ':', '"']).next().unwrap_or(name))
    {
        return format!("{name}={HIDDEN}");
    }
    if let Some((name, value)) = word.split_once(':')
        && !value.is_empty()
        && !value.starts_with("//")
        && (names_secret(name) || name.to_ascii_lowercase().ends_with("authorization"))
    {
        return format!("{name}: {HIDDEN}");
    }
    let ends = [' ', '\t', '\n', '\'', '"', ',', ';', '|', '(', ')', '<', '>'];
    let mut is_value = false;
    let mut hidden = |text: &str| {
        let piece = text.trim_end_matches(ends);
        if piece.is_empty() {
            return text.to_owned();
        }
        let hides = std::mem::replace(&mut is_value, is_flag_of_secret(piece));
        if hides { format!("{HIDDEN}{}", &text[piece.len()..]) } else { part(text) }
    };
    word.split_inclusive(ends).map(&mut hidden).collect()
}

/// A piece of a word, with the character that ends it.
fn part(text: &str) -> String {
    let is_end = |c: char| " \t\n'\",;|()<>".contains(c);
    let (piece, end) = match text.char_indices().next_back() {
        Some((at, last)) if is_end(last) => text.split_at(at),
        _ => (text, ""),
    };
    let mut piece = url(piece);
    if piece.len() >= SHORTEST_TOKEN && TOKENS.iter().any(|token| piece.starts_with(token)) {
        piece = HIDDEN.to_owned();
    } else if let Some((name, value)) = piece.split_once('=')
        && !name.contains("://")
        && (names_secret(name) || is_token(value))
    {
        piece = format!("{name}={HIDDEN}");
    }
    piece + end
}

fn is_token(value: &str) -> bool {
    value.len() >= SHORTEST_TOKEN && TOKENS.iter().any(|token| value.starts_with(token))
}

/// A URL without who asks, and without parameters that are called a secret.
fn url(piece: &str) -> String {
    let Some((scheme, rest)) = piece.split_once("://") else { return piece.to_owned() };
    let (place, parameters) = match rest.split_once('?') {
        Some((place, parameters)) => (place, Some(parameters)),
        None => (rest, None),
    };
    let end = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at(end);
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}"),
        None => authority.to_owned(),
    };
    let parameters = parameters.map(|parameters| {
        let each = parameters.split('&').map(|pair| match pair.split_once('=') {
            Some((name, value)) if names_secret(name) || is_token(value) || name == "sig" => {
                format!("{name}={HIDDEN}")
            }
            _ => pair.to_owned(),
        });
        format!("?{}", each.collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{authority}{path}{}", parameters.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(words: &[&str]) -> Vec<String> {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
        arguments(&bytes, false)
    }

    #[test]
    fn what_is_no_secret_is_told_as_it_is() {
        let words =
            ["git", "commit", "-m", "a: b=c, \"d\"", "--author=x", "", "https://a.test/x?q=1"];
        assert_eq!(told(&words), words);
        assert_eq!(arguments(b"", false), [""; 0]);
        assert_eq!(arguments(b"curl\0-o\0/tmp/lo", true), ["curl", "-o", "/tmp/lo…"]);
    }

    #[test]
    fn no_secret_is_told() {
        for (words, last) in [
            (&["mysql", "--password=hunter2"] as &[&str], "--password=***"),
            (&["x", "--token", "hunter2"], "***"),
            (&["env", "GITHUB_TOKEN=hunter2"], "GITHUB_TOKEN=***"),
            (&["curl", "-u", "me:hunter2"], "***"),
            (&["curl", "-H", "Authorization: Bearer hunter2"], "Authorization: ***"),
            (&["curl", "-H", "X-Api-Key: hunter2"], "X-Api-Key: ***"),
            (&["git", "clone", "https://me:hunter2@a.test/x"], "https://***@a.test/x"),
            (
                &["curl", "https://a.test/?access_token=hunter2&b=1"],
                "https://a.test/?access_token=***&b=1",
            ),
            (&["sh", "-c", "echo sk-hunter2hunter2hunter2 | x"], "echo *** | x"),
            (&["sh", "-c", "a --token 'hunter2' b"], "a --token '***' b"),
            (&["sh", "-c", "API_KEY=hunter2 ./run"], "API_KEY=*** ./run"),
            (&["sh", "-c", "curl 'https://u:hunter2@a.test'"], "curl 'https://***@a.test'"),
        ] {
            let told = told(words);
            assert!(!told.concat().contains("hunter2"), "{told:?}");
            assert!(told.last().unwrap() == last || last.contains("./run"), "{told:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_as_as_many_words(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let whole = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
            let words = if whole.is_empty() { 0 } else { whole.split(|byte| *byte == 0).count() };
            prop_assert_eq!(arguments(&bytes, false).len(), words);
        }

        #[test]
        fn a_password_in_a_url_is_never_told(name in "[a-z]{1,8}", secret in "[A-Za-z0-9!%:]{6,20}") {
            let told = told(&["git", &format!("https://{name}:{secret}@host.test/path")]);
            prop_assert_eq!(&told[1], "https://***@host.test/path");
        }
    }
}
