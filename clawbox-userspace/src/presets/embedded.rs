//! What is built in: presets, profiles and groups of paths, as they are in `policies/`.
//! A table, so that a file which is not in it does not silently stay out: a test compares.

/// A file that is built in.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! embedded {
    ($directory:literal: $($name:literal)*) => {
        &[$(Embedded {
            name: $name,
            text: include_str!(concat!("../../../policies/", $directory, "/", $name, ".yaml")),
        }),*]
    };
}

/// Fragments for one service each, by name.
#[rustfmt::skip]
pub const PRESETS: &[Embedded] = embedded!("presets":
    "anthropic" "apt" "brave-search" "crates" "discord" "docker-hub" "gemini" "ghcr" "github"
    "gitlab" "google-workspace" "huggingface" "jira" "local-inference" "mcr" "mistral" "npm"
    "nvidia" "ollama" "openai" "openrouter" "outlook" "pypi" "quay" "slack" "telegram"
    "web-search" "whatsapp"
);

/// Policies for one agent each, by name.
#[rustfmt::skip]
pub const PROFILES: &[Embedded] = embedded!("claws":
    "claude-code" "codex" "gemini-cli" "ironclaw" "nanobot" "nanoclaw" "openclaw" "opencode"
    "picoclaw" "zeroclaw"
);

/// The groups of paths that `deny` may name.
pub const GROUPS: &str = include_str!("../../../policies/groups.yaml");
