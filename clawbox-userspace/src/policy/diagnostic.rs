//! What is wrong with a policy, where, and what to write instead.
//! Every refusal and every warning of the policy half is a [`Diagnostic`].

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// How much a diagnostic weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy does not load.
    Error,
    /// The policy loads, and probably does not do what its author meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// The word in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A place in a policy file. Line zero is the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Origin {
    /// The file as the user named it.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// Line, from one.
    pub line: u32,
    /// Column in characters, from one.
    pub column: u32,
}

fn as_text<S: serde::Serializer>(file: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(file)
}

impl Origin {
    /// The file as a whole.
    #[must_use]
    pub fn file(file: &str) -> Self {
        Self { file: file.into(), line: 0, column: 0 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}", self.file)
        } else {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How much it weighs.
    pub severity: Severity,
    /// Where.
    #[serde(flatten)]
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub remedy: Option<String>,
}

impl Diagnostic {
    /// A finding that stops the policy from loading; whoever writes one knows the way out.
    pub fn error(origin: Origin, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Error, origin, message, Some(remedy.into()))
    }

    /// A finding that does not.
    pub fn warning(origin: Origin, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Severity::Warning, origin, message, Some(remedy.into()))
    }

    /// A remark.
    pub fn note(origin: Origin, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, origin, message, None)
    }

    fn new(
        severity: Severity,
        origin: Origin,
        message: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self { severity, origin, message: message.into(), remedy }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.origin, self.severity.name(), self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Collects findings, so that one run of `check` shows every mistake, not the first.
#[derive(Debug, Default)]
pub struct Findings(Vec<Diagnostic>);

impl Findings {
    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Whether anything stops the policy from loading.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|d| d.severity == Severity::Error)
    }

    /// All of them in the order of the files and lines they stand on.
    #[must_use]
    pub fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.0.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { file: "policy.yaml".into(), line: 12, column: 9 }
    }

    #[test]
    fn a_diagnostic_reads_as_place_severity_message_remedy() {
        let d = Diagnostic::error(origin(), "port 0 is not a port", "write 1 to 65535");
        assert_eq!(
            d.to_string(),
            "policy.yaml:12:9: error: port 0 is not a port; write 1 to 65535"
        );
        let d = Diagnostic::note(Origin::file("policy.yaml"), "nothing to add");
        assert_eq!(d.to_string(), "policy.yaml: note: nothing to add");
    }

    #[test]
    fn a_diagnostic_is_flat_in_json() {
        let d = Diagnostic::error(origin(), "port 0 is not a port", "write 1 to 65535");
        assert_eq!(
            serde_json::to_string(&d).unwrap(),
            r#"{"severity":"error","file":"policy.yaml","line":12,"column":9,"message":"port 0 is not a port","remedy":"write 1 to 65535"}"#
        );
    }
}
