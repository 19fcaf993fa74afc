//! Connections on which a name is hidden (`ech: allow`). The agent alone knows which they are, so it tells
//! which ones a policy that comes later is to be asked about, and ends those that it does not let be.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Those of one sandbox.
#[derive(Debug, Default)]
pub struct HiddenConnections(Mutex<Vec<Listed>>);

#[derive(Debug)]
struct Listed {
    /// The socket of the client.
    cookie: u64,
    made_for: MadeFor,
    end: Arc<watch::Sender<bool>>,
}

/// What one was made for.
#[derive(Clone, Debug)]
pub struct MadeFor {
    /// The name that the address stood for.
    pub name: Arc<str>,
    /// The address behind it.
    pub real: IpAddr,
    /// The port.
    pub port: u16,
}

/// One of them, as long as this lives.
#[derive(Debug)]
pub(super) struct Hiding {
    list: Arc<HiddenConnections>,
    end: Arc<watch::Sender<bool>>,
}

impl HiddenConnections {
    /// Whether a socket is one of them, by its cookie.
    #[must_use]
    pub fn has(&self, cookie: u64) -> bool {
        self.with(|listed| listed.iter().any(|one| one.cookie == cookie))
    }

    /// Ends those whose sockets are not among these, which programs have and may have: nobody has them at
    /// this moment, or can be asked. They stay where every program that gets them may have them.
    pub fn end_others(&self, stay: &HashSet<u64>, may_anybody: impl Fn(&MadeFor) -> bool) {
        self.with(|listed| {
            let others = listed.iter().filter(|one| !stay.contains(&one.cookie));
            for one in others.filter(|one| !may_anybody(&one.made_for)) {
                one.end.send_replace(true);
            }
        });
    }

    /// Takes one up.
    pub(super) fn begin(self: &Arc<Self>, cookie: u64, made_for: MadeFor) -> Hiding {
        let end = Arc::new(watch::Sender::new(false));
        self.with(|listed| listed.push(Listed { cookie, made_for, end: Arc::clone(&end) }));
        Hiding { list: Arc::clone(self), end }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Listed>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hiding {
    /// Whether it has to end.
    pub(super) fn has_ended(&self) -> bool {
        *self.end.borrow()
    }

    /// Waits until it has to.
    pub(super) async fn ended(&self) {
        // The other half is this one's own, so that there is no other end of waiting.
        let _ = self.end.subscribe().wait_for(|ended| *ended).await;
    }
}

impl Drop for Hiding {
    fn drop(&mut self) {
        self.list.with(|listed| listed.retain(|one| !Arc::ptr_eq(&one.end, &self.end)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_policy_does_not_let_be_ends_and_is_then_unknown() {
        let list = Arc::new(HiddenConnections::default());
        let begin = |cookie, name: &str| {
            let real = "192.0.2.1".parse().unwrap();
            list.begin(cookie, MadeFor { name: name.into(), real, port: 443 })
        };
        let (one, other, same) = (begin(1, "a.test"), begin(2, "a.test"), begin(2, "a.test"));
        let unseen = begin(4, "b.test");
        assert!(list.has(1) && list.has(2) && !list.has(3));
        list.end_others(&HashSet::from([1, 3]), |made_for| &*made_for.name == "b.test");
        other.ended().await;
        assert!(!one.has_ended() && other.has_ended() && same.has_ended());
        assert!(!unseen.has_ended());
        drop(other);
        assert!(list.has(2), "another connection of that socket is there");
        drop(same);
        assert!(!list.has(2));
    }
}
