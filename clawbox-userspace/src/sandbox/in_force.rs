//! The policy in force as the rest of the agent asks it: which names it allows, and what the
//! numbers in events stand for. It can be replaced while a sandbox runs.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use clawbox_common::event::NetworkEvent;
use clawbox_common::rule::HostIds;
use clawbox_common::verdict::Reason;

use crate::audit::kernel_event::Meaning;
use crate::audit::record::Rule;
use crate::compile::MapImage;
use crate::dns::{NameDecision, NamePolicy, NameTable};
use crate::policy::address::readable;

/// Policies that are remembered after they were replaced: events of theirs may still be on the way.
const REMEMBERED: usize = 8;

/// A compiled policy and the names that its resolver has handed addresses out for.
#[derive(Debug)]
pub struct PolicyInForce {
    /// The policy in force first, then those before it. Never empty.
    images: RwLock<VecDeque<Arc<MapImage>>>,
    names: OnceLock<Arc<NameTable>>,
}

impl PolicyInForce {
    /// Puts a compiled policy behind the questions.
    #[must_use]
    pub fn new(image: MapImage) -> Arc<Self> {
        let images = RwLock::new(VecDeque::from([Arc::new(image)]));
        Arc::new(Self { images, names: OnceLock::new() })
    }

    /// The compiled policy.
    #[must_use]
    pub fn image(&self) -> Arc<MapImage> {
        Arc::clone(&self.images.read().unwrap_or_else(PoisonError::into_inner)[0])
    }

    /// Asks the compiled policy something, without keeping it.
    fn ask<T>(&self, question: impl FnOnce(&MapImage) -> T) -> T {
        question(&self.images.read().unwrap_or_else(PoisonError::into_inner)[0])
    }

    /// Replaces the policy. From here on names are judged by the new one; what the kernel decides
    /// changes with the sandbox's state.
    pub fn replace(&self, image: MapImage) {
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        images.push_front(Arc::new(image));
        images.truncate(REMEMBERED);
    }

    /// Takes back a replacement that the kernel was not given.
    pub fn restore(&self) {
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        if images.len() > 1 {
            images.pop_front();
        }
    }

    /// The policy that an event was decided by.
    fn of_generation(&self, generation: u32) -> Option<Arc<MapImage>> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        images.iter().find(|image| image.generation() == generation).cloned()
    }

    /// Whether a name may be hidden on a connection that the kernel has let through, by its name: under
    /// the policy in force, which may have changed since.
    #[must_use]
    pub fn admits_hidden(&self, event: &NetworkEvent, name: &str) -> bool {
        self.ask(|image| {
            if image.generation() == event.policy {
                return image.admits_hidden(event.host);
            }
            image.all_admit_hidden(name, readable(event.real), event.port)
        })
    }

    /// Tells whose names the numbers in events are. The resolver asks this policy, so it comes
    /// later than the policy; a second call changes nothing.
    pub fn know_names(&self, names: Arc<NameTable>) {
        let _ = self.names.set(names);
    }
}

impl NamePolicy for PolicyInForce {
    fn name(&self, name: &str) -> NameDecision {
        self.ask(|image| match image.name(name) {
            Ok(Some(_)) => NameDecision::Allowed,
            Ok(None) if image.asks_for_unknown() => NameDecision::Asked,
            Ok(None) => NameDecision::Denied(Reason::UnknownName),
            Err(_) => NameDecision::Denied(Reason::TableFull),
        })
    }

    fn hosts_for(&self, name: &str, address: IpAddr) -> Option<HostIds> {
        self.ask(|image| image.name(name).ok()??.hosts_for(address))
    }

    fn free_bytes(&self, name: &str) -> usize {
        self.ask(|image| image.name(name).ok().flatten().map_or(0, |rule| rule.free_bytes(name)))
    }

    fn generation(&self) -> u32 {
        self.ask(MapImage::generation)
    }

    fn audit_only(&self) -> bool {
        self.ask(|image| image.audit_only())
    }
}

/// What an event's numbers stand for under the policy that decided it.
pub struct EventMeaning(pub Arc<PolicyInForce>);

impl Meaning for EventMeaning {
    fn rule(&self, event: &NetworkEvent) -> Option<Rule> {
        let image = self.0.of_generation(event.policy)?;
        let found = image.attribute(
            event.host,
            event.port,
            event.transport,
            event.matched_word,
            event.matched,
        )?;
        Some(Rule {
            policy: found.policy_key.to_owned(),
            endpoint: found.endpoint,
            host: found.host.to_owned(),
            binary: Some(found.binary.to_owned()),
        })
    }

    fn name(&self, number: u32) -> Option<String> {
        let names = self.0.names.get()?;
        (number != 0).then(|| names.name_of(number)).flatten().map(|name| name.to_string())
    }
}
