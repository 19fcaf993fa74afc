//! Unix sockets that were connected or sent to: which a policy may open, and which give away more than themselves.

use std::path::Path;

use super::fold::Protected;
use super::observed::Reached;
use super::{Learned, LeftOut};
use crate::policy::lists::List;
use crate::presets::insert::Item;

/// Parts of paths of sockets by which others act, each with what they do.
const OF_OTHERS: [(&[&str], &str); 5] = [
    (
        &["ssh-agent", "openssh_agent", "/ssh-", "/keyring/ssh", ".ssh/agent"],
        "an ssh agent: who reaches it logs in as this user",
    ),
    (
        &["/gnupg/", "/.gnupg/", "S.gpg-agent", "S.scdaemon"],
        "a gpg agent: who reaches it signs and decrypts as this user",
    ),
    (&["/keyring/", "/pkcs11", "pcscd"], "keys and passwords of this user"),
    (
        &["/systemd/private", "/systemd/notify"],
        "the service manager: who reaches it starts programs outside the sandbox",
    ),
    (
        &["/.X11-unix/", "/wayland-"],
        "a display: who reaches it reads and types what this user does",
    ),
];

/// A user's own message bus, on which services start what they are asked to.
fn is_session_bus(path: &Path) -> bool {
    path.starts_with("/run/user") && path.file_name().is_some_and(|name| name == "bus")
}

/// Why a socket is not opened by what is learned.
fn danger(path: &Path, protected: &Protected) -> Option<String> {
    if let Some((group, _)) = protected.group(path) {
        return Some(match group {
            "container-sockets" => {
                "a container engine: who reaches it has the whole host (group:container-sockets)"
                    .to_owned()
            }
            group => format!("what others are kept from (group:{group})"),
        });
    }
    let text = path.to_string_lossy();
    let known = OF_OTHERS.iter().find(|(parts, _)| parts.iter().any(|part| text.contains(part)));
    let bus = "this user's message bus: services on it start programs outside the sandbox";
    known.map(|(_, because)| *because).or(is_session_bus(path).then_some(bus)).map(str::to_owned)
}

/// Takes up one; `is_writable` says whether what was learned of files lets it be reached already.
pub(super) fn take_up(
    path: &Path,
    reached: &Reached,
    protected: &Protected,
    is_writable: bool,
    learned: &mut Learned,
) {
    let names: Vec<&str> = reached.programs.iter().map(String::as_str).take(3).collect();
    let who = if names.is_empty() { "a program".to_owned() } else { names.join(", ") };
    let text = path.display().to_string();
    let mut leave = |because: String, options: Option<Vec<String>>| {
        let what = format!("{who} reaches the Unix socket {text}");
        learned.left_out.push(LeftOut { what, because, options });
    };
    if text == "@" {
        let because =
            "it has no path: one of its own sandbox is reached without a rule, no other is";
        return leave(because.to_owned(), None);
    }
    if !text.starts_with('/') || path.to_str().is_none() {
        return leave("where it is was not seen in whole".to_owned(), None);
    }
    if let Some(because) = danger(path, protected) {
        return leave(because, Some(vec!["--socket".to_owned(), text.clone()]));
    }
    if is_writable {
        return;
    }
    if path.starts_with("/run/dbus") {
        let remark =
            format!("{text} is the host's message bus: its services do what they are asked to");
        learned.remarks.push(remark);
    }
    let many =
        if reached.count == 1 { "once".to_owned() } else { format!("{} times", reached.count) };
    let by = names.iter().map(|name| name.rsplit('/').next().unwrap_or(name));
    let by = by.collect::<Vec<_>>().join(", ");
    let because = Some(format!("seen: reached {many}, by {by}"));
    learned.sockets.push(Item { list: List::Sockets, value: text, because });
}
