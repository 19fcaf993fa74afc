//! Sockets that are open while a policy changes: what the new one says of names is written to them
//! before it is in force, and what no longer passes is reset afterwards, not left to drain.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::{MapData, SkStorage};
use clawbox_common::decide::{self, Connected, Decision, Destination, Route, transport_of};
use clawbox_common::rule::{Granted, HostIds, SandboxState, SocketState, SyntheticValue, TCP};
use clawbox_common::subject::{Standing, Subject};
use clawbox_common::verdict::{Reason, Verdict};
use rustix::io::Errno;
use rustix::net::{Shutdown, connect_unspec, getpeername, getsockname, shutdown, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::strays::Stray;
use crate::compile::{ImageLookup, MapImage};
use crate::gateway::HiddenConnections;
use crate::kernel::enforcer::Enforcer;
use crate::kernel::load::LoadError;
use crate::kernel::pinned::Identified;
use crate::policy::address::{readable, wire};

/// Names that no socket was connected to.
const NO_NAMES: [Granted; 2] = [Granted {
    policy: 0,
    value: SyntheticValue {
        real: clawbox_common::address::Address { words: [0; 4] },
        hosts: HostIds { ids: [0; 4] },
        name: 0,
    },
}; 2];

/// What the kernel knows of sandboxes' processes and of sockets.
pub struct Connections {
    identified: Identified,
    states: SkStorage<MapData, SocketState>,
}

/// A socket that was reset.
pub struct Reset {
    /// A process that has it.
    pub process: u32,
    /// That process's user.
    pub user: u32,
    /// That process's identity.
    pub subject: Subject,
    /// Where it led, as it was asked; of a listener and a connection that it took, its own end.
    pub to: Destination,
    /// The address behind it.
    pub real: IpAddr,
    /// The name's number; zero if there was none.
    pub name: u32,
    /// Why.
    pub decision: Decision,
}

/// Who has a socket, and by which descriptor each.
type Users = Vec<(u32, Subject, i32)>;

/// Which sockets a policy cuts.
#[derive(Clone, Copy, Debug)]
pub enum Cut<'a> {
    /// All that it does not allow, those among them that hide a name.
    All(&'a HiddenConnections),
    /// Connections that were made from there. What listens may be somebody else's too, who has handed it
    /// down: systemd's, say.
    Clients,
}

/// An open socket and who has it.
struct Open {
    socket: OwnedFd,
    cookie: u64,
    end: End,
    transport: u8,
    state: Option<SocketState>,
    users: Vec<(u32, Subject)>,
}

/// What a socket is there for.
#[derive(Clone, Copy)]
enum End {
    /// Connected, to there.
    Client(SocketAddr),
    /// Listens here, or was taken here.
    Server(SocketAddr),
    /// Is being connected, and the kernel does not say yet to whom; or is bound and nothing else.
    Nowhere,
}

/// Of a stream that has no peer yet. `None` for one that is not even on its way.
fn connecting(state: Option<&SocketState>, local: SocketAddr) -> Option<End> {
    if local.port() == 0 {
        return None;
    }
    let asked = state.filter(|state| state.asked_port != 0);
    Some(asked.map_or(End::Nowhere, |state| {
        End::Client(SocketAddr::new(readable(state.asked), state.asked_port))
    }))
}

/// Of a stream that is being connected, and goes where it was asked to: the kernel tells the address in
/// its table alone, or by now to whoever asks.
fn dialled(socket: &OwnedFd, users: &[(u32, Subject)]) -> End {
    let inode = rustix::fs::fstat(socket).map(|found| found.st_ino).unwrap_or(0);
    let told = users.first().and_then(|(process, _)| {
        ["tcp", "tcp6"].into_iter().find_map(|table| {
            let text = fs::read_to_string(format!("/proc/{process}/net/{table}")).ok()?;
            text.lines().skip(1).find_map(|line| remote_of(line, inode))
        })
    });
    let by_now = || SocketAddr::try_from(getpeername(socket).ok()??).ok();
    told.or_else(by_now).map_or(End::Nowhere, End::Client)
}

/// The other end in a line of `/proc/net/tcp` or `tcp6`, if that is of this socket (proc(5)). Addresses are
/// words in the host's byte order, as hexadecimal digits.
fn remote_of(line: &str, inode: u64) -> Option<SocketAddr> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if inode == 0 || fields.get(9)?.parse() != Ok(inode) {
        return None;
    }
    let (address, port) = fields.get(2)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
    let words: Vec<[u8; 4]> = address
        .as_bytes()
        .chunks(8)
        .map(|word| {
            let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(word.to_ne_bytes())
        })
        .collect::<Option<_>>()?;
    let ip = match words.as_slice() {
        [one] => IpAddr::from(*one),
        [_, _, _, _] => IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

impl Connections {
    /// Of a run whose programs are attached.
    ///
    /// # Errors
    /// It has no table of identities, or that of sockets was taken before.
    pub fn of(run: &str, enforcer: &mut Enforcer) -> Result<Self, LoadError> {
        let absent = LoadError::Absent { kind: "map", name: "SUBJECTS" };
        let identified = Identified::of_run(run)?.ok_or(absent)?;
        Ok(Self { identified, states: enforcer.take_sockets()? })
    }

    /// Who a process is.
    pub fn subject(&self, process: u32) -> Option<Subject> {
        self.identified.subject(process)
    }

    /// Who is who.
    pub fn identified(&self) -> &Identified {
        &self.identified
    }

    /// Writes to every connection by name of a sandbox what the policy says of its name that comes next.
    /// `grant` tells it, by name's number and real address.
    pub fn renew(
        &mut self,
        sandbox: u32,
        generation: u32,
        grant: impl Fn(u32, IpAddr) -> Option<HostIds>,
    ) {
        for open in self.users(sandbox) {
            let Some(open) = self.open(open) else { continue };
            let Some(mut state) = open.state else { continue };
            let Some(slot) = renewed(&mut state, generation, &grant) else { continue };
            tracing::trace!(slot, "a connection's name is granted again");
            // A lost race with the socket's own process leaves what does not fit its peer: a deny.
            if let Err(error) = self.states.insert(&open.socket, state, 0) {
                tracing::warn!("a connection's name cannot be granted again: {error}");
            }
        }
    }

    /// Resets what no process of a sandbox that has it may have connected under this policy.
    pub fn reset(
        &mut self,
        sandbox: u32,
        image: &MapImage,
        state: &SandboxState,
        what: Cut<'_>,
    ) -> Vec<Reset> {
        let mut lookup = ImageLookup::new(image, sandbox);
        lookup.state = *state;
        let mut resets = Vec::new();
        let mut may_hide = HashSet::new();
        for open in self.users(sandbox) {
            let Some(open) = self.open(open) else { continue };
            if matches!(what, Cut::Clients) && !matches!(open.end, End::Client(_)) {
                continue;
            }
            if matches!(open.end, End::Nowhere) {
                // What it asks for may not be allowed any more, and it can ask again.
                if let Err(error) = cut(&open.socket) {
                    tracing::debug!("a connection that is being made stays: {error}");
                }
                continue;
            }
            let hides = matches!(what, Cut::All(hidden) if hidden.has(open.cookie));
            let verdicts = open.users.iter().map(|(_, subject)| {
                let decision = open.judged(&lookup, subject);
                if hides { may_still_hide(image, decision) } else { decision }
            });
            let verdicts: Vec<Decision> = verdicts.collect();
            let (Some(&(process, subject)), Some(&decision)) =
                (open.users.first(), verdicts.first())
            else {
                continue;
            };
            if verdicts.iter().any(Decision::goes_on) {
                may_hide.insert(open.cookie);
                continue;
            }
            if let Err(error) = cut(&open.socket) {
                tracing::warn!("a connection that the policy no longer allows stays: {error}");
                continue;
            }
            resets.push(open.reset(process, subject, decision));
        }
        if let Cut::All(hidden) = what {
            // What is in a message, or cannot be looked at: the agent has the other half of each.
            hidden.end_others(&may_hide, |made_for| {
                image.all_admit_hidden(&made_for.name, made_for.real, made_for.port)
            });
        }
        resets
    }

    /// The sockets of a sandbox's processes, each with who has it. What ends meanwhile is left out; what
    /// a message holds that is on its way between two processes is seen by none.
    fn users(&self, sandbox: u32) -> Vec<Users> {
        let processes = match self.identified.subjects() {
            Ok(processes) => processes,
            Err(error) => {
                tracing::warn!("open connections stay as they are: {error}");
                return Vec::new();
            }
        };
        let mut found: BTreeMap<u64, Users> = BTreeMap::new();
        let of_sandbox = |(_, subject): &(u32, Subject)| subject.sandbox == sandbox;
        for (process, subject) in processes.into_iter().filter(of_sandbox) {
            // Whose number may have become another process's.
            match Stray::find(process, subject.incarnation) {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!("connections of process {process} stay as they are: {error}");
                    continue;
                }
            }
            for (number, socket) in sockets_of(process) {
                found.entry(socket).or_default().push((process, subject, number));
            }
        }
        found.into_values().collect()
    }

    /// One of them. Opened one at a time: a sandbox may have more than the agent may. `None` for what is no
    /// internet socket, leads nowhere, or has been closed.
    fn open(&self, users: Users) -> Option<Open> {
        let mut found = None;
        for (process, subject, number) in &users {
            let Ok(Some(held)) = Stray::find(*process, subject.incarnation) else { continue };
            match pidfd_getfd(held.fd(), *number, PidfdGetfdFlags::empty()) {
                Ok(descriptor) => {
                    found = Some(descriptor);
                    break;
                }
                Err(Errno::BADF | Errno::SRCH) => {}
                Err(errno) => {
                    tracing::warn!("a connection of process {process} stays as it is: {errno}");
                }
            }
        }
        let users = users.into_iter().map(|(process, subject, _)| (process, subject)).collect();
        self.look_at(found?, users)
    }

    /// `None` for what is no internet socket, or leads nowhere.
    fn look_at(&self, socket: OwnedFd, users: Vec<(u32, Subject)>) -> Option<Open> {
        let protocol = sockopt::socket_protocol(&socket).ok()??;
        let transport = transport_of(protocol.as_raw().get())?;
        let state = self.states.get(&socket, 0).ok();
        let cookie = sockopt::socket_cookie(&socket).ok()?;
        let is_taken = state.is_some_and(|state| state.bound_by != 0 && state.bound_as != cookie);
        let local = || SocketAddr::try_from(getsockname(&socket).ok()?).ok();
        let end = if is_taken || sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            End::Server(local()?)
        } else {
            match getpeername(&socket) {
                // What the process is shown: the address that it asked for.
                Ok(peer) => End::Client(SocketAddr::try_from(peer?).ok()?),
                Err(Errno::NOTCONN) if transport == TCP => {
                    match connecting(state.as_ref(), local()?)? {
                        End::Nowhere => dialled(&socket, &users),
                        end => end,
                    }
                }
                Err(_) => return None,
            }
        };
        Some(Open { socket, cookie, end, transport, state, users })
    }
}

impl Open {
    fn judged(&self, lookup: &ImageLookup<'_>, subject: &Subject) -> Decision {
        let standing = Standing::Subject(subject);
        let to = self.destination();
        match self.end {
            End::Client(_) => {
                let names = self.told().map_or(NO_NAMES, |state| state.names);
                let decision = decide::egress(&Connected { lookup, names: &names }, &standing, &to);
                decide::in_use(decision, self.told(), Some(subject))
            }
            End::Nowhere => Decision::refused(Reason::UnknownEndpoint),
            End::Server(local) => {
                // It may have been bound to all addresses at once.
                let any = if local.is_ipv4() { [0; 4].into() } else { IpAddr::from([0; 16]) };
                let all =
                    decide::bind(lookup, &standing, &Destination { address: wire(any), ..to });
                if all.goes_on() { all } else { decide::bind(lookup, &standing, &to) }
            }
        }
    }

    /// What is kept with the socket, if it is about where it leads.
    fn told(&self) -> Option<&SocketState> {
        let End::Client(peer) = self.end else { return None };
        let state = self.state.as_ref()?;
        (state.asked == wire(peer.ip()) && state.asked_port == peer.port()).then_some(state)
    }

    fn destination(&self) -> Destination {
        let at = match self.end {
            End::Client(at) | End::Server(at) => at,
            End::Nowhere => SocketAddr::from(([0; 4], 0)),
        };
        let receiver = self.told().map_or(0, |state| state.receiver);
        Destination {
            address: wire(at.ip()),
            port: at.port(),
            transport: self.transport,
            zero: 0,
            receiver,
        }
    }

    fn reset(&self, process: u32, subject: Subject, decision: Decision) -> Reset {
        let to = self.destination();
        let told = self.told();
        let name = told.and_then(|state| state.names.iter().map(|held| held.value.name).max());
        let user =
            fs::metadata(format!("/proc/{process}")).map_or(u32::MAX, |process| process.uid());
        Reset {
            process,
            user,
            subject,
            to,
            real: readable(told.map_or(to.address, |state| state.real)),
            name: name.unwrap_or_default(),
            decision,
        }
    }
}

/// What a decision says of a connection that hides a name: where it is to be verified, whether it may.
fn may_still_hide(image: &MapImage, decision: Decision) -> Decision {
    let is_read = decision.goes_on() && matches!(decision.route, Route::Verifier);
    if !is_read || image.admits_hidden(decision.host) {
        return decision;
    }
    Decision { verdict: Verdict::Deny, reason: Reason::HiddenHost, ..decision }
}

/// Puts what a policy says of a socket's name in the place that the one in force does not use, and gives
/// that place; `None` where it has no name.
fn renewed(
    state: &mut SocketState,
    generation: u32,
    grant: impl Fn(u32, IpAddr) -> Option<HostIds>,
) -> Option<usize> {
    let latest =
        state.names.iter().max_by_key(|held| held.policy).filter(|held| held.policy != 0)?;
    let value = latest.value;
    let slot = usize::from(latest.policy == state.names[0].policy);
    // A name that is not allowed any more keeps its place with no host: known, and admitted by no rule.
    let hosts = grant(value.name, readable(value.real)).unwrap_or_default();
    state.names[slot] = Granted { policy: generation, value: SyntheticValue { hosts, ..value } };
    Some(slot)
}

/// Ends a connection at once: the other side gets a reset, and nothing that is still waiting.
fn cut(socket: &OwnedFd) -> io::Result<()> {
    match connect_unspec(socket.as_fd()) {
        Ok(()) => Ok(()),
        // Somebody waits on it, which some kernels do not take (`sk_wait_pending`): let them go.
        Err(Errno::BUSY) => {
            shutdown(socket, Shutdown::Both)?;
            Ok(connect_unspec(socket.as_fd())?)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// The sockets that a process has: a descriptor of each, and which it is.
fn sockets_of(process: u32) -> Vec<(i32, u64)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/fd")) else { return Vec::new() };
    let sockets = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, socket_number(&fs::read_link(entry.path()).ok()?)?))
    });
    sockets.collect()
}

/// As `/proc/PID/fd` shows it (proc(5)): `socket:[number]`.
fn socket_number(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> SocketState {
        let value = SyntheticValue { name: 7, ..SyntheticValue::default() };
        let names = [Granted { policy: 3, value }, Granted::default()];
        SocketState {
            asked: wire([198, 18, 0, 1].into()),
            real: wire([192, 0, 2, 1].into()),
            asked_port: 443,
            real_port: 443,
            receiver: 0,
            bound_by: 0,
            zero: 0,
            held_for: clawbox_common::subject::FileId::default(),
            bound_as: 0,
            names,
        }
    }

    #[test]
    fn the_other_end_is_read_from_the_kernels_table() {
        let v4 = "   1: 0100007F:8C4E 2278D85D:01BB 02 00000001:00000000 01:00000064 00000000     0        0 4711 2 x";
        assert_eq!(remote_of(v4, 4711), Some("93.216.120.34:443".parse().unwrap()));
        let v6 = "   0: 00000000000000000000000000000000:8C4E B80D0120000000000000000001000000:0007 02 0:0 0:0 0 0 0 12 1 x";
        assert_eq!(remote_of(v6, 12), Some("[2001:db8::1]:7".parse().unwrap()));
        let mapped = "   0: 0:1 0000000000000000FFFF00002278D85D:0007 02 0:0 0:0 0 0 0 12 1 x";
        assert_eq!(remote_of(mapped, 12), Some("93.216.120.34:7".parse().unwrap()));
        assert_eq!(remote_of(v4, 4712), None);
        for line in ["", "sl local rem", "1: a b c d e f g h 12", "1: a ZZ:1 c d e f g h 12"] {
            assert_eq!(remote_of(line, 12), None, "{line}");
        }
    }

    #[test]
    fn what_the_policy_in_force_says_of_a_name_stays_beside_what_the_next_one_says() {
        let mut state = state();
        let hosts = |number| HostIds { ids: [number, 0, 0, 0] };
        for (generation, slot) in [(4, 1), (5, 0), (9, 1)] {
            let renewed = renewed(&mut state, generation, |name, _| {
                assert_eq!(name, 7);
                Some(hosts(generation))
            });
            assert_eq!(renewed, Some(slot));
            assert_eq!(state.names[slot].policy, generation);
            assert_eq!(state.names[slot].value.hosts, hosts(generation));
            assert!(state.names[1 - slot].policy < generation);
        }
        assert_eq!(renewed(&mut state, 10, |_, _| None), Some(0));
        assert_eq!(state.names[0].value.hosts, HostIds::default(), "admitted by no rule");
    }

    #[test]
    fn a_connection_without_a_name_is_left_as_it_is() {
        let mut state = SocketState { names: NO_NAMES, ..state() };
        assert_eq!(renewed(&mut state, 4, |_, _| Some(HostIds::default())), None);
        assert_eq!(state.names, NO_NAMES);
    }

    #[test]
    fn sockets_are_told_from_other_descriptors() {
        assert_eq!(socket_number(Path::new("socket:[123]")), Some(123));
        for other in ["pipe:[123]", "/tmp/socket:[1]", "socket:[]", "socket:[1"] {
            assert_eq!(socket_number(Path::new(other)), None, "{other}");
        }
    }
}
