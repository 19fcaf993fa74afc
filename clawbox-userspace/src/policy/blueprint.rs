//! NemoClaw blueprints: of these only the policy additions are a policy.
//! The rest is parsed strictly, so that a typo is found, and reported as not enforced.

use serde::Deserialize;

use super::document::NetworkSection;
use super::yaml::{At, Entries, Given};

/// A blueprint.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlueprintDocument {
    /// Version of the blueprint itself.
    #[serde(default)]
    version: Given<At<String>>,
    #[serde(default)]
    min_openshell_version: Given<At<String>>,
    #[serde(default)]
    min_openclaw_version: Given<At<String>>,
    #[serde(default)]
    digest: Given<At<String>>,
    #[serde(default)]
    profiles: Given<At<Vec<String>>>,
    #[serde(default)]
    description: Given<At<String>>,
    /// What it is made of.
    pub components: Components,
}

/// `components`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Components {
    #[serde(default)]
    sandbox: Given<At<SandboxComponent>>,
    #[serde(default)]
    inference: Given<At<InferenceComponent>>,
    /// The policy.
    #[serde(default)]
    pub policy: Given<PolicyComponent>,
}

/// `components.policy`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyComponent {
    #[serde(default)]
    base: Given<At<String>>,
    /// Network policies added to the base.
    #[serde(default)]
    pub additions: Given<Entries<At<NetworkSection>>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxComponent {
    #[serde(default, rename = "image")]
    _image: Given<String>,
    #[serde(default, rename = "name")]
    _name: Given<String>,
    #[serde(default, rename = "forward_ports")]
    _forward_ports: Given<Vec<u16>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct InferenceComponent {
    #[serde(default, rename = "profiles")]
    _profiles: Given<Entries<InferenceProfile>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct InferenceProfile {
    #[serde(default, rename = "provider_type")]
    _provider_type: Given<String>,
    #[serde(default, rename = "provider_name")]
    _provider_name: Given<String>,
    #[serde(default, rename = "endpoint")]
    _endpoint: Given<String>,
    #[serde(default, rename = "model")]
    _model: Given<String>,
    #[serde(default, rename = "credential_env")]
    _credential_env: Given<String>,
    #[serde(default, rename = "credential_default")]
    _credential_default: Given<String>,
    #[serde(default, rename = "dynamic_endpoint")]
    _dynamic_endpoint: Given<bool>,
}

impl BlueprintDocument {
    /// The parts that this build does nothing about, each with its place.
    pub fn unenforced(&self) -> Vec<(&'static str, At<()>)> {
        let mut parts = Vec::new();
        let mut add = |name, place: Option<At<()>>| {
            if let Some(place) = place {
                parts.push((name, place));
            }
        };
        add("version", self.version.place());
        add("min_openshell_version", self.min_openshell_version.place());
        add("min_openclaw_version", self.min_openclaw_version.place());
        add("digest", self.digest.place());
        add("profiles", self.profiles.place());
        add("components.sandbox", self.components.sandbox.place());
        add("components.inference", self.components.inference.place());
        if let Some(policy) = self.components.policy.get() {
            add("components.policy.base", policy.base.place());
        }
        // A description promises nothing.
        let _ = &self.description;
        parts
    }
}
