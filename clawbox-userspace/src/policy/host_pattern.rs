//! Which names a rule means: exact, or with wildcards that can never span a whole registry.
//! Holds only valid patterns, folded to lower case without the trailing dot.

use std::fmt;

use thiserror::Error;

/// Why a host is refused. The text says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct InvalidHost {
    message: String,
    /// What to write instead.
    pub remedy: String,
}

/// One label of a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Label {
    /// Exactly this.
    Exact(String),
    /// Any one label.
    One,
    /// One label or more; only in front.
    Many,
    /// A label with `*` in it; only in front.
    Glob(String),
}

/// A host name as a rule writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern {
    text: String,
    labels: Vec<Label>,
}

/// RFC 1035, section 2.3.4.
const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;
/// Labels at the end that a pattern has to spell out: fewer would cover a whole registry.
const LITERAL_TAIL: usize = 2;

fn refuse<T>(message: impl Into<String>, remedy: impl Into<String>) -> Result<T, InvalidHost> {
    Err(InvalidHost { message: message.into(), remedy: remedy.into() })
}

impl HostPattern {
    /// Parses a host as written in a policy. Address literals are not names; try those first.
    pub fn parse(written: &str) -> Result<Self, InvalidHost> {
        let text = fold(written);
        refuse_what_is_no_host(written, &text)?;
        let parts: Vec<&str> = text.split('.').collect();
        let wild = text.contains('*');
        let mut labels = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            labels.push(parse_label(written, part, index == 0)?);
        }
        if wild {
            let tail =
                labels.iter().rev().take_while(|label| matches!(label, Label::Exact(_))).count();
            if tail < LITERAL_TAIL {
                return refuse(
                    format!("`{written}` would cover a whole top-level domain"),
                    "spell out at least the last two labels, for example `*.example.com`",
                );
            }
        }
        let last = parts.last().copied().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return refuse(
                format!("`{written}` is neither a name nor an address"),
                "write the address in full, for example `192.0.2.1`",
            );
        }
        Ok(Self { text, labels })
    }

    /// The pattern, folded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How many bytes of every name that it matches it spells out.
    #[must_use]
    pub fn spelt_bytes(&self) -> usize {
        self.as_str().bytes().filter(|byte| *byte != b'*').count()
    }

    /// Whether it means exactly one name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.labels.iter().all(|label| matches!(label, Label::Exact(_)))
    }

    /// Whether this is a name for the local machine (RFC 6761).
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        matches!(self.labels.last(), Some(Label::Exact(last)) if last == "localhost")
    }

    /// Whether a name matches, in any case and with or without the trailing dot. Asked for each pattern
    /// of a policy at each question, so it makes no copy; from the end, where most names differ.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() || name.len() > LONGEST_NAME {
            return false;
        }
        let mut names = name.rsplit('.');
        for label in self.labels.iter().rev() {
            let Some(name) = names.next().filter(|name| !name.is_empty()) else {
                return false;
            };
            let is_met = match label {
                Label::Exact(exact) => exact.eq_ignore_ascii_case(name),
                Label::One | Label::Many => true,
                Label::Glob(glob) => glob_matches(glob, name),
            };
            if !is_met {
                return false;
            }
        }
        // The front wildcard takes what is left over.
        let many = matches!(self.labels.first(), Some(Label::Many));
        names.all(|name| many && !name.is_empty())
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn fold(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn refuse_what_is_no_host(written: &str, text: &str) -> Result<(), InvalidHost> {
    if text.is_empty() {
        return refuse("the host is empty", "write a name or an address");
    }
    if text.contains("://") || text.contains('/') {
        return refuse(
            format!("`{written}` is a URL or a range, not a host"),
            "write the host name alone; ranges go into `allowed_ips`",
        );
    }
    if text.contains(':') || text.contains('[') {
        return refuse(
            format!("`{written}` holds a port or is not a valid IPv6 address"),
            "write the host alone, without brackets, and the port in `port`",
        );
    }
    if !text.is_ascii() {
        return refuse(
            format!("`{written}` is not ASCII"),
            "write the name as DNS carries it (`xn--…`)",
        );
    }
    if text.len() > LONGEST_NAME {
        return refuse(
            format!("the host is {} characters long", text.len()),
            format!("a name has at most {LONGEST_NAME}"),
        );
    }
    if text == "*" || text == "**" {
        return refuse(
            format!("`{written}` would admit every host"),
            "name the hosts, for example `*.example.com`",
        );
    }
    Ok(())
}

fn parse_label(written: &str, label: &str, first: bool) -> Result<Label, InvalidHost> {
    match label {
        "" => {
            return refuse(format!("`{written}` has an empty label"), "remove the extra dot");
        }
        "*" => return Ok(Label::One),
        "**" if first => return Ok(Label::Many),
        _ => {}
    }
    if label.len() > LONGEST_LABEL {
        return refuse(
            format!("`{written}` has a label of {} characters", label.len()),
            format!("a label has at most {LONGEST_LABEL}"),
        );
    }
    if let Some(bad) =
        label.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*')))
    {
        return refuse(
            format!("`{written}` holds {bad:?}, which no host name has"),
            "write letters, digits, hyphens and dots",
        );
    }
    if label.contains("**") {
        return refuse(
            format!("`{written}` has `**` beside other text or behind the first label"),
            "`**` stands alone in front, as in `**.example.com`",
        );
    }
    if label.contains('*') {
        if !first {
            return refuse(
                format!("`{written}` has a partial wildcard behind the first label"),
                "use `*` for the whole label, as in `*.s3.*.example.com`",
            );
        }
        return Ok(Label::Glob(label.to_owned()));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return refuse(
            format!("`{written}` has a label that begins or ends with a hyphen"),
            "remove the hyphen",
        );
    }
    Ok(Label::Exact(label.to_owned()))
}

/// `*` stands for any number of characters. Going back to the last star only keeps this linear
/// in the product of the lengths, both at most [`LONGEST_LABEL`].
fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    let mut resume = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                resume = Some((g + 1, t));
                g += 1;
            }
            Some(byte) if text.get(t).is_some_and(|it| it.eq_ignore_ascii_case(byte)) => {
                g += 1;
                t += 1;
            }
            _ => match resume {
                Some((after, from)) => {
                    resume = Some((after, from + 1));
                    g = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob.iter().skip(g).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_names_they_mean_and_no_others() {
        for (pattern, name, expected) in [
            ("api.example.com", "api.example.com", true),
            ("API.Example.Com.", "api.example.com", true),
            ("api.example.com", "API.EXAMPLE.COM.", true),
            ("api.example.com", "xapi.example.com", false),
            ("api.example.com", "api.example.com.evil.test", false),
            ("localhost", "localhost", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "aexample.com", false),
            ("**.example.com", "a.example.com", true),
            ("**.example.com", "a.b.c.example.com", true),
            ("**.example.com", "example.com", false),
            ("**.example.com", "a..example.com", false),
            ("*-api.example.com", "eu-api.example.com", true),
            ("*-api.example.com", "eu-apix.example.com", false),
            ("*-api.example.com", "x.eu-api.example.com", false),
            ("a*b*c.example.com", "aXbYbc.example.com", true),
            ("a*b*c.example.com", "ac.example.com", false),
            ("*.s3.*.example.com", "bkt.s3.eu.example.com", true),
            ("*.s3.*.example.com", "bkt.s3.example.com", false),
            ("**.s3.*.example.com", "a.b.s3.eu.example.com", true),
            ("*.example.com", "", false),
        ] {
            let parsed = HostPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_that_no_rule_can_mean_are_refused_with_a_way_out() {
        let long_label = format!("{}.example.com", "a".repeat(64));
        let long_name = format!("{}example.com", "a.".repeat(125));
        for (written, says, remedy) in [
            ("", "the host is empty", "write a name"),
            ("*", "every host", "*.example.com"),
            ("**", "every host", "*.example.com"),
            ("*.com", "whole top-level domain", "last two labels"),
            ("**.com", "whole top-level domain", "last two labels"),
            ("*-api.com", "whole top-level domain", "last two labels"),
            ("a.*.com", "whole top-level domain", "last two labels"),
            ("example.*", "whole top-level domain", "last two labels"),
            ("a.b*.example.com", "partial wildcard", "whole label"),
            ("a.**.example.com", "`**` beside", "stands alone in front"),
            ("x**.example.com", "`**` beside", "stands alone in front"),
            ("https://a.example.com", "URL", "host name alone"),
            ("a.example.com:443", "holds a port", "`port`"),
            ("[::1]", "holds a port", "without brackets"),
            ("a..example.com", "empty label", "extra dot"),
            ("bücher.example", "not ASCII", "xn--"),
            ("a b.example.com", "' '", "letters, digits"),
            ("-a.example.com", "hyphen", "remove"),
            ("10.0.0", "neither a name nor an address", "in full"),
            ("127.1", "neither a name nor an address", "in full"),
            ("0x7f000001", "neither a name nor an address", "in full"),
            (&long_label, "label of 64", "at most 63"),
            (&long_name, "characters long", "at most 253"),
        ] {
            let error = HostPattern::parse(written).unwrap_err();
            assert!(error.to_string().contains(says), "{written}: {error}");
            assert!(error.remedy.contains(remedy), "{written}: {}", error.remedy);
        }
    }

    #[test]
    fn a_label_glob_is_linear_even_on_hostile_input() {
        let glob = "*a".repeat(31);
        let name = "a".repeat(62) + "b";
        assert!(!glob_matches(&glob, &name));
    }
}
