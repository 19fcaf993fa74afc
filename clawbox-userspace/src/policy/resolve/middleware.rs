//! `network_middlewares`: built-ins only, each in a place of its own in the chain.

use super::{At, Scope};
use crate::policy::document::MiddlewareSection;
use crate::policy::host_pattern::HostPattern;
use crate::policy::network::{Cover, Middleware, OnError};
use crate::policy::yaml::{Entries, Given};

/// What ships with the base language.
const BUILT_IN: &[&str] = &["openshell/regex"];
const MOST_MIDDLEWARES: usize = 10;
const MOST_PATTERNS: usize = 32;

pub(super) fn middlewares(
    scope: &mut Scope<'_>,
    given: &Given<Entries<At<MiddlewareSection>>>,
) -> Vec<Middleware> {
    let entries = given.get().map_or(&[][..], |entries| entries.0.as_slice());
    if let Some((over, _)) = entries.get(MOST_MIDDLEWARES) {
        let message = format!("{} middlewares are configured", entries.len());
        scope.error(over, message, format!("keep at most {MOST_MIDDLEWARES}"));
    }
    let mut middlewares: Vec<Middleware> = Vec::new();
    for (key, at) in entries.iter().take(MOST_MIDDLEWARES) {
        let section = &at.value;
        if !BUILT_IN.contains(&section.middleware.value.as_str()) {
            scope.error(
                &section.middleware,
                format!("there is no middleware {:?}", section.middleware.value),
                format!("write one of the built-in ones: {}", BUILT_IN.join(", ")),
            );
        }
        let order = section.order.or(0);
        if let Some(other) = middlewares.iter().find(|other| other.order == order) {
            let message = format!("`{}` has the same order {order} as `{}`", key.value, other.key);
            scope.error(key, message, "give each its own `order`");
        }
        let endpoints = &section.endpoints.value;
        if endpoints.include.is_empty() {
            scope.error(
                &section.endpoints,
                "`include` is empty",
                "name hosts, or \"**\" for every host",
            );
        }
        let exclude = endpoints.exclude.get().map_or(&[][..], Vec::as_slice);
        if endpoints.include.len() + exclude.len() > MOST_PATTERNS {
            scope.error(
                &section.endpoints,
                "too many host patterns",
                format!("keep at most {MOST_PATTERNS}"),
            );
        }
        middlewares.push(Middleware {
            key: key.value.clone(),
            middleware: section.middleware.value.clone(),
            order,
            config: section.config.get().map(|at| at.value.clone()),
            on_error: section.on_error.or(OnError::FailClosed),
            include: covers(scope, &endpoints.include),
            exclude: covers(scope, exclude),
            origin: key.origin(scope.file),
        });
    }
    middlewares
}

fn covers(scope: &mut Scope<'_>, written: &[At<String>]) -> Vec<Cover> {
    let mut covers = Vec::new();
    for at in written {
        if at.value == "*" || at.value == "**" {
            covers.push(Cover::Every);
            continue;
        }
        match HostPattern::parse(&at.value) {
            Ok(pattern) => covers.push(Cover::Hosts(pattern)),
            Err(error) => scope.error(at, error.to_string(), error.remedy),
        }
    }
    covers
}
