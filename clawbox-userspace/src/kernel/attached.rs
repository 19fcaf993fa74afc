//! Whether what was attached and pinned still is: nobody else has a reason to detach a program, to put
//! another in its place, or to take a pin away, and root can. What is found is put right at once.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;

use super::enforcer::Enforcer;
use super::link::{self, Info};
use super::load::{self, KEPT, LoadError};
use super::pin::PinnedLinks;
use super::pinned;

/// Something that is not as this process has left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The program or table.
    pub part: String,
    /// What is wrong, as a stable name.
    pub reason: &'static str,
    /// Why it could not be put right; `None` if it was.
    pub unrepaired: Option<String>,
}

/// A pinned object. Held, so that it outlives its pin.
#[derive(Debug)]
struct Held {
    name: &'static str,
    object: OwnedFd,
    id: u32,
}

/// A link, its program's number, and whether it is at a cgroup.
#[derive(Debug)]
struct Link {
    held: Held,
    program: u32,
    at_cgroup: bool,
}

/// Everything that a load has pinned.
#[derive(Debug)]
pub(super) struct Attached {
    root: PathBuf,
    directory: PathBuf,
    links: Vec<Link>,
    tables: Vec<Held>,
}

impl Attached {
    /// Of programs of these names, all of which are attached and pinned, and the tables that are kept.
    pub(super) fn of(
        root: &Path,
        directory: &Path,
        ebpf: &Ebpf,
        programs: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self, LoadError> {
        let failed = |what| move |source| LoadError::Watch { what, source };
        let tables = KEPT
            .iter()
            .map(|name| Held::at(directory, name, Info::of_map).map_err(failed(*name)))
            .collect::<Result<_, _>>()?;
        let (root, directory) = (root.to_owned(), directory.to_owned());
        let mut all = Self { root, directory, links: Vec::new(), tables };
        all.take_in(ebpf, programs)?;
        Ok(all)
    }

    /// More programs.
    pub(super) fn take_in(
        &mut self,
        ebpf: &Ebpf,
        programs: impl IntoIterator<Item = &'static str>,
    ) -> Result<(), LoadError> {
        for name in programs {
            let failed = |source| LoadError::Watch { what: name, source };
            let held = Held::at(&self.directory, name, Info::of_link).map_err(failed)?;
            let at_cgroup = Info::of_link(&held.object).map_err(failed)?.is_at_cgroup();
            let absent = LoadError::Absent { kind: "program", name };
            let program = ebpf.program(name).and_then(|program| program.info().ok());
            let program = program.ok_or(absent)?.id();
            self.links.push(Link { held, program, at_cgroup });
        }
        Ok(())
    }

    fn check(&mut self, ebpf: &mut Ebpf, pins: &PinnedLinks) -> Vec<Fault> {
        let Self { root, directory, links, tables } = self;
        let mut faults = Vec::new();
        if let Err(error) = pinned::restore(directory) {
            faults.push(Fault::of("pins", "unpinned", Err(error)));
        }
        for link in links {
            let reason = match Info::of_link(&link.held.object) {
                Ok(info) if link.at_cgroup && info.cgroup == 0 => Some("detached"),
                Ok(info) if info.program != link.program => Some("replaced"),
                Ok(_) => None,
                Err(_) => Some("detached"),
            };
            if let Some(reason) = reason {
                let repaired = link.attach_again(ebpf, root, directory, pins);
                faults.push(Fault::of(link.held.name, reason, repaired));
            }
            faults.extend(link.held.check_pin(directory, Info::of_link));
        }
        for table in tables {
            faults.extend(table.check_pin(directory, Info::of_map));
        }
        faults
    }

    fn attach_again(&mut self, ebpf: &mut Ebpf, pins: &PinnedLinks) -> io::Result<()> {
        let Self { root, directory, links, .. } = self;
        let mut at_cgroups = links.iter_mut().filter(|link| link.at_cgroup);
        at_cgroups.try_for_each(|link| link.attach_again(ebpf, root, directory, pins))
    }
}

impl Link {
    /// Attaches the program that was loaded once more, and pins that in the place of what is there.
    fn attach_again(
        &mut self,
        ebpf: &mut Ebpf,
        root: &Path,
        directory: &Path,
        pins: &PinnedLinks,
    ) -> io::Result<()> {
        if !self.at_cgroup {
            return Err(io::Error::other("only a restart of the daemon attaches it again"));
        }
        let name = self.held.name;
        let link = load::attach_socket_again(ebpf, name, &File::open(root)?);
        let link = link.map_err(io::Error::other)?;
        pins.take_in(vec![(name, link)]).map_err(io::Error::other)?;
        // The one before ends with this.
        self.held = Held::at(directory, name, Info::of_link)?;
        Ok(())
    }
}

impl Held {
    fn at(
        directory: &Path,
        name: &'static str,
        info: fn(&OwnedFd) -> io::Result<Info>,
    ) -> io::Result<Self> {
        let object = link::get(&directory.join(name))?;
        let id = info(&object)?.id;
        Ok(Self { name, object, id })
    }

    /// Whether the pin is there and is this object's.
    fn check_pin(&self, directory: &Path, info: fn(&OwnedFd) -> io::Result<Info>) -> Option<Fault> {
        let path = directory.join(self.name);
        let found = link::get(&path).and_then(|object| Ok(info(&object)?.id));
        if found.is_ok_and(|id| id == self.id) {
            return None;
        }
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let repaired = removed.and_then(|()| link::pin(self.object.as_fd(), &path));
        Some(Fault::of(self.name, "unpinned", repaired))
    }
}

impl Fault {
    /// Of a part, with what came of its repair.
    #[must_use]
    pub fn of(part: &str, reason: &'static str, repaired: io::Result<()>) -> Self {
        let unrepaired = repaired.err().map(|error| error.to_string());
        Self { part: part.to_owned(), reason, unrepaired }
    }
}

impl Enforcer {
    /// What of the programs and pins is not as it was left, put right as far as it can be.
    pub fn check_attached(&mut self) -> Vec<Fault> {
        let (ebpf, pins, attached) = self.watched();
        attached.map_or_else(Vec::new, |attached| attached.check(ebpf, pins))
    }

    /// Attaches the socket programs again, whatever is said of those that are.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub fn attach_sockets_again(&mut self) -> io::Result<()> {
        let (ebpf, pins, attached) = self.watched();
        attached.map_or(Ok(()), |attached| attached.attach_again(ebpf, pins))
    }
}
