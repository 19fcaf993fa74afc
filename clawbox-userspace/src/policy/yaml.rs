//! YAML text to located raw values, under bounds that no policy a person wrote comes near.
//! Turns every parser error into one [`Diagnostic`] that names its place and its fix.

use std::borrow::Cow;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{Error, Options, Spanned};

use super::diagnostic::{Diagnostic, Origin};
use super::nearest::nearest;

/// A value with the line and column it was written at. Two values are equal wherever they stand.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    line: u32,
    column: u32,
}

impl<T> At<T> {
    /// The value's place in a file.
    pub fn origin(&self, file: &Arc<str>) -> Origin {
        Origin { file: Arc::clone(file), line: self.line, column: self.column }
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Self {
            line: number(spanned.referenced.line()),
            column: number(spanned.referenced.column()),
            value: spanned.value,
        })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// An optional key. Unlike `Option`, a key written with nothing behind it (`rules:` above lines
/// that were commented out) is not the same as no key: it could widen what the rule admits.
#[derive(Clone, Debug, PartialEq)]
pub struct Given<T>(Option<T>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Given<T> {
    /// A key with a value.
    pub fn of(value: T) -> Self {
        Self(Some(value))
    }

    /// The value, if the key is there.
    pub fn get(&self) -> Option<&T> {
        self.0.as_ref()
    }
}

impl<T> Given<At<T>> {
    /// Where the key's value stands, if the key is there.
    pub fn place(&self) -> Option<At<()>> {
        self.0.as_ref().map(|at| At { value: (), line: at.line, column: at.column })
    }
}

impl<T: Copy> Given<At<T>> {
    /// The value without its place, or what stands for no key.
    pub fn or(&self, default: T) -> T {
        self.0.as_ref().map_or(default, |at| at.value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(|value| Self(Some(value)))
    }
}

impl<T: JsonSchema> JsonSchema for Given<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A mapping with keys of the author's choice, in the order of the file: the audit trail names
/// the first rule that admits.
#[derive(Clone, Debug, PartialEq)]
pub struct Entries<T>(pub Vec<(At<String>, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Vec<(At<String>, T)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Vec::new())
            }
        }

        deserializer.deserialize_map(InOrder(std::marker::PhantomData)).map(Self)
    }
}

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("MapOf{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        std::collections::BTreeMap::<String, T>::json_schema(generator)
    }
}

/// Aliases may repeat what is written, within reason: a policy of 256 KiB has fewer nodes.
const ALIAS_EVENTS: usize = 20_000;
/// The language itself nests eight deep.
const DEPTH: usize = 32;

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
            max_nodes: 100_000,
            max_events: 200_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS,
            max_replay_stack_depth: 8,
            max_alias_expansions_per_anchor: 1_000,
        },
        with_snippet: false,
        reject_unsupported_tags: true,
    }
}

/// Parses one document.
pub fn parse<T: DeserializeOwned>(file: &Arc<str>, text: &str) -> Result<T, Diagnostic> {
    serde_saphyr::from_str_with_options(text, options()).map_err(|e| explain(file, &e))
}

fn explain(file: &Arc<str>, error: &Error) -> Diagnostic {
    let error = error.without_snippet();
    let mut origin = Origin::file(file);
    if let Some(location) = error.location() {
        origin.line = u32::try_from(location.line()).unwrap_or(u32::MAX);
        origin.column = u32::try_from(location.column()).unwrap_or(u32::MAX);
    }
    let (message, remedy) = describe(error);
    Diagnostic::error(origin, message, remedy)
}

fn describe(error: &Error) -> (String, String) {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => (
            format!("unknown key `{field}`"),
            match nearest(field, expected) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("the keys here are {}", expected.join(", ")),
            },
        ),
        Error::SerdeUnknownVariant { variant, expected, .. } => (
            format!("`{variant}` is not a value of this key"),
            match nearest(variant, expected) {
                Some(known) => format!("did you mean `{known}`?"),
                None => format!("write one of {}", expected.join(", ")),
            },
        ),
        Error::SerdeMissingField { field, .. } => {
            (format!("`{field}` is missing"), format!("add the key `{field}`"))
        }
        Error::DuplicateMappingKey { key, .. } => (
            match key {
                Some(key) => format!("the key `{key}` is written twice"),
                None => "a key is written twice".to_owned(),
            },
            "keep one of them".to_owned(),
        ),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => (
            format!("found {unexpected} where {expected} is expected"),
            format!("write {expected}"),
        ),
        Error::AliasError { error, .. } => describe(error),
        other => describe_shape(other),
    }
}

/// What is wrong with the YAML itself rather than with a key or a value.
fn describe_shape(error: &Error) -> (String, String) {
    match error {
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. } => {
            ("the YAML aliases expand past the bound".to_owned(), "write the values out".to_owned())
        }
        Error::Budget { .. } => (
            "the YAML is nested deeper or repeats more than any policy does".to_owned(),
            format!("keep nesting under {DEPTH} levels and write aliases out"),
        ),
        Error::MultipleDocuments { .. } => (
            "the file holds more than one YAML document".to_owned(),
            "keep one document; merge fragments with --preset".to_owned(),
        ),
        Error::Eof { .. } => (
            "the file ends where a value is expected".to_owned(),
            "complete it; the last lines may have been cut off".to_owned(),
        ),
        Error::Unexpected { expected: "mapping start", .. } => (
            "found something else where keys and values are expected".to_owned(),
            "write `key: value`".to_owned(),
        ),
        Error::Unexpected { expected: "sequence start", .. } => (
            "found something else where a list is expected".to_owned(),
            "write `[a, b]`, or `- a` on lines of its own".to_owned(),
        ),
        Error::InvalidScalar { ty, .. } => {
            let expected = match *ty {
                "u64" | "i64" | "u16" => "a whole number",
                "bool" => "true or false",
                other => other,
            };
            (
                format!("found something else where {expected} is expected"),
                format!("write {expected}"),
            )
        }
        other => (without_place(&other.to_string()), "correct the YAML here".to_owned()),
    }
}

/// The parser's own text repeats the place that the diagnostic already carries.
fn without_place(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let cut = first.find(" at line ").unwrap_or(first.len());
    let rest = first.get(..cut).unwrap_or(first);
    let rest = match rest.strip_prefix("error: ") {
        Some(rest) => rest,
        None => rest,
    };
    match rest.split_once(": ") {
        Some((place, said)) if place.starts_with("line ") => said.to_owned(),
        _ => rest.to_owned(),
    }
}
