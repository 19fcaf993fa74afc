//! Rows 27 to 29, and what of rows 8 and 13 is about files: islands in a writable tree, and every way
//! to change, open or go round them. One sandbox takes many attempts, because an emulated machine
//! takes long to load the programs.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::Layer;

use super::attempt::{Attempt, Tried, attempts, find, got_through, harmless, hostile};
use crate::scene::Scene;

/// A tree that the sandbox's user owns, so that only the policy stands between it and the islands:
/// `ro` and `.git/hooks` may be read, `closed`, `later` and every `.env` may not be reached at all.
struct Tree {
    root: PathBuf,
    policy: String,
}

impl Tree {
    fn new(scene: &Scene) -> Self {
        let root = std::fs::canonicalize(scene.world.work()).unwrap().join("repo");
        let r = root.display();
        let policy = scene
            .policy("")
            .replace("/proc, ", &format!("/proc, {r}/ro, {r}/.git/hooks, "))
            .replace(
                "read_write: [/dev/null]",
                &format!(
                    "read_write: [/dev/null, {r}]\n  deny: [{r}/closed, {r}/later, \"**/.env\"]"
                ),
            );
        Self { root, policy }
    }

    /// Makes it as it was, whatever an attack that got through has done to it.
    fn make(&self) {
        let _ = std::fs::remove_dir_all(&self.root);
        for directory in [".git/hooks", "src", "closed"] {
            std::fs::create_dir_all(self.root.join(directory)).unwrap();
        }
        for (file, text) in [
            ("src/main.c", "int main;"),
            ("closed/key", "secret"),
            (".env", "TOKEN=secret"),
            ("src/.env", "TOKEN=secret"),
            ("ro", "as it was"),
            ("other", "of no rule"),
            (".git/hooks/pre-commit", "#!/bin/sh\n"),
        ] {
            std::fs::write(self.root.join(file), text).unwrap();
        }
        open_to_all(&self.root);
        owned_by_sandbox(&self.root);
    }

    /// Tries everything; where the kernel has BPF LSM, nothing may get through and nothing change.
    #[track_caller]
    fn holds(&self, scene: &Scene, tries: &[Attempt]) -> Vec<Tried> {
        let has_lsm = scene.has_lsm();
        let tried = attempts(
            || {
                self.make();
                Clawbox::new(&scene.world, &self.policy).workdir(&self.root).with_lsm_if(has_lsm)
            },
            tries,
        );
        if has_lsm {
            let through: Vec<&str> = got_through(tries, &tried).collect();
            assert!(through.is_empty(), "got through: {through:?}");
            self.is_as_it_was();
        }
        tried
    }

    #[track_caller]
    fn is_as_it_was(&self) {
        let ro = self.root.join("ro");
        assert_eq!(std::fs::read_to_string(&ro).unwrap(), "as it was");
        let hooks: Vec<_> = std::fs::read_dir(self.root.join(".git/hooks")).unwrap().collect();
        assert_eq!(hooks.len(), 1, "{hooks:?}");
        assert!(self.root.join("closed/key").exists() && !self.root.join("key").exists());
        assert!(!self.root.join(".git/.env").exists());
    }

    /// Asserts that the attempt's record names the path, as far as the hook was told it.
    #[track_caller]
    fn told(&self, tried: &[Tried], name: &str, action: &str, reason: &str, path: &str) {
        let found = find(tried, name);
        let whole = self.root.join(path).display().to_string();
        // Some hooks are not told on which mount the file is.
        let is_it = |told: &&str| match told.strip_prefix("…/") {
            Some(end) => whole.ends_with(end) && end.contains('/'),
            None => **told == whole,
        };
        // With the others: a denial may have come under a mark that is not its own.
        assert!(found.has(action, reason), "{name}: no {action} {reason}: {found:#?}\n{tried:?}");
        assert!(found.paths().iter().any(is_it), "{name}: no {whole}: {found:#?}");
    }
}

pub fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            open_to_all(&entry.unwrap().path());
        }
    }
}

/// What the owner of the files may do anyway is done by root's rules here: the sandbox's user owns
/// everything.
pub fn owned_by_sandbox(path: &Path) {
    let nobody = clawbox_tests::network::NOBODY;
    std::os::unix::fs::lchown(path, Some(nobody), Some(nobody)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            owned_by_sandbox(&entry.unwrap().path());
        }
    }
}

/// Row 27: a file that may be read is changed, by its name and by descriptors of it.
fn on_a_read_only_file() -> Vec<Attempt> {
    let on = |name: &str, code: &str| hostile(27, name, code);
    let descriptor = "f = os.open('ro', os.O_RDONLY); ";
    let by = |name: &str, code: &str| hostile(27, name, format!("{descriptor}{code}"));
    vec![
        harmless(
            "the tree",
            "write('src/main.c'); os.rename('src/main.c', 'src/m'); os.rename('src/m', 'src/main.c')",
        ),
        harmless("a directory", "os.mkdir('new'); os.rmdir('new')"),
        harmless("reading it", "read('ro'); read('other')"),
        on("open", "write('ro')"),
        on("open O_TRUNC", "write('ro', os.O_TRUNC)"),
        on("openat2", "call(437, -100, b'ro', (ctypes.c_uint64 * 3)(1, 0, 0), 24)"),
        on("through a symlink", "os.symlink('ro', 'soft'); write('soft')"),
        on("through a hard link", "os.link('ro', 'linked'); write('linked')"),
        on("O_PATH, then /proc/self/fd", "write('/proc/self/fd/%d' % os.open('ro', os.O_PATH))"),
        on(
            "name_to_handle_at, open_by_handle_at",
            "h = (ctypes.c_uint32 * 34)(128); m = ctypes.c_int(); d = os.open('.', os.O_RDONLY); \
             call(303, -100, b'ro', h, ctypes.byref(m), 0); call(304, d, h, 1)",
        ),
        on("truncate", "os.truncate('ro', 0)"),
        by("ftruncate", "os.ftruncate(f, 0)").or(Layer::OpenMode),
        by("fallocate", "call(285, f, 0, ctypes.c_long(0), ctypes.c_long(9))"),
        by("copy_file_range", "os.copy_file_range(os.open('other', os.O_RDONLY), f, 1)"),
        by("sendfile", "os.sendfile(f, os.open('src/main.c', os.O_RDONLY), 0, 1)"),
        by("splice", "r, w = os.pipe(); os.write(w, b'x'); call(275, r, None, f, None, 1, 0)"),
        by("mmap shared and writable", "mmap.mmap(f, 4)").or(Layer::OpenMode),
        by(
            "mprotect of a shared mapping",
            "m = libc.mmap; m.restype = ctypes.c_void_p; a = m(None, 4096, 1, 1, f, 0); \
             call(10, ctypes.c_void_p(a), 4096, 3)",
        )
        .or(Layer::OpenMode),
        on("chmod", "os.chmod('ro', 0o777)"),
        by("fchmod", "os.fchmod(f, 0o777)"),
        on("chown", "os.chown('ro', -1, os.getgid())"),
        by("fchown", "os.fchown(f, -1, os.getgid())"),
        on("utimes", "os.utime('ro', (0, 0))"),
        by("futimens", "os.utime(f)"),
        on("setxattr", "os.setxattr('ro', 'user.x', b'y')"),
        by("fsetxattr", "os.setxattr(f, 'user.x', b'y')"),
        on(
            "an access list",
            "import struct; os.setxattr('ro', 'system.posix_acl_access', struct.pack('<I', 2) \
             + b''.join(struct.pack('<HHI', t, 7, 0xffffffff) for t in (1, 4, 16, 32)))",
        ),
        on("removexattr", "os.removexattr('ro', 'system.posix_acl_access')"),
        by(
            "attribute flags by ioctl",
            "import fcntl, struct; fcntl.ioctl(f, 0x40086602, struct.pack('l', 0x40))",
        ),
        on("RENAME_EXCHANGE", "exchange('other', 'ro')"),
    ]
}

/// Rows 27 and 28: the names of the islands, and those above them.
fn on_the_names_of_islands() -> Vec<Attempt> {
    vec![
        hostile(27, "rename of a protected directory", "os.rename('closed', 'opened')"),
        hostile(27, "hard link out of a closed directory", "os.link('closed/key', 'key')"),
        hostile(27, "reading in a closed directory", "read('closed/key')"),
        hostile(27, "listing a closed directory", "os.listdir('closed')"),
        hostile(27, "a name closed everywhere", "read('src/.env')"),
        hostile(27, "a name closed everywhere, renamed", "os.rename('.env', 'env')"),
        hostile(27, "a name closed everywhere, made", "write('.git/.env', os.O_CREAT)"),
        hostile(28, "unlink of the island", "os.unlink('ro')"),
        hostile(28, "rename of the island", "os.rename('ro', 'gone')"),
        hostile(28, "rename over the island", "write('n', os.O_CREAT); os.rename('n', 'ro')"),
        hostile(28, "exchange with the island's parent", "exchange('src', '.git')"),
        hostile(28, "rename of the island's parent", "os.rename('.git', '.git2')"),
        hostile(28, "a file made in the island", "write('.git/hooks/post-commit', os.O_CREAT)"),
        hostile(28, "a file moved into the island", "os.rename('src/main.c', '.git/hooks/m.c')"),
        hostile(28, "a file linked into the island", "os.link('other', '.git/hooks/other')"),
        hostile(28, "a symlink made in the island", "os.symlink('x', '.git/hooks/x')"),
        hostile(28, "a directory made in the island", "os.mkdir('.git/hooks/d')"),
        hostile(28, "unlink in the island", "os.unlink('.git/hooks/pre-commit')"),
        hostile(28, "writing in the island", "write('.git/hooks/pre-commit')"),
        hostile(
            28,
            "an unnamed file linked into the island",
            "t = os.open('.', os.O_TMPFILE | os.O_RDWR); \
             os.link('/proc/self/fd/%d' % t, '.git/hooks/t', follow_symlinks=True)",
        ),
    ]
}

/// Row 8: other ways to the same place. Row 13: names and paths that are longer than buffers, deeper
/// than the walk, or odd.
fn by_other_paths(tree: &Tree) -> Vec<Attempt> {
    let root = tree.root.clone();
    let odd = b"closed/\xff\n\"\\\x01".to_vec();
    let long: PathBuf = std::iter::repeat_n("x".repeat(200), 17).collect();
    let (make_odd, make_long) = (root.join(std::ffi::OsStr::from_bytes(&odd)), root.join("closed"));
    let long_in_closed = make_long.join(&long);
    let in_tree = root.join("long").join(&long);
    let made = long_in_closed.clone();
    let made_in_tree = in_tree.clone();
    vec![
        hostile(8, "by dots", "write('src/../ro')"),
        hostile(8, "by /proc/self/root", "write('/proc/self/root' + os.getcwd() + '/ro')"),
        hostile(8, "by /proc/self/cwd", "write('/proc/self/cwd/ro')"),
        hostile(8, "by /proc/self/fd/N", "write('/proc/self/fd/%d' % os.open('ro', 0))"),
        hostile(13, "odd bytes in a name", "read(b'closed/\\xff\\n\"\\\\\\x01')")
            .after(move || std::fs::write(&make_odd, "secret").unwrap()),
        hostile(13, "a path of 3400 bytes", format!("read('{}/key')", long_in_closed.display()))
            .after(move || {
                std::fs::create_dir_all(&made).unwrap();
                std::fs::write(made.join("key"), "secret").unwrap();
            }),
        harmless("as long, in the tree", format!("read('{}/file')", in_tree.display())).after(
            move || {
                std::fs::create_dir_all(&made_in_tree).unwrap();
                std::fs::write(made_in_tree.join("file"), "open").unwrap();
                open_to_all(&made_in_tree);
            },
        ),
        hostile(13, "a name longer than a rule's", "read('closed/' + 'k' * 255)").after({
            let path = root.join("closed").join("k".repeat(255));
            move || std::fs::write(&path, "secret").unwrap()
        }),
    ]
}

/// Row 29: what is closed before it is there. Last, the way down that ends in no rule.
fn on_what_is_not_there_yet(tree: &Tree) -> Vec<Attempt> {
    let later = tree.root.join("later");
    let by_host = |name: &str, code: &str| {
        let later = later.clone();
        hostile(29, name, code).after(move || {
            std::fs::create_dir_all(&later).unwrap();
            std::fs::write(later.join("key"), "secret").unwrap();
            open_to_all(&later);
        })
    };
    vec![
        hostile(29, "made", "os.mkdir('later')"),
        hostile(29, "made as a file", "write('later', os.O_CREAT)"),
        hostile(29, "moved there", "os.mkdir('sooner'); os.rename('sooner', 'later')"),
        hostile(29, "linked there", "os.link('other', 'later')"),
        hostile(29, "a symlink made there", "os.symlink('src', 'later')"),
        by_host("made by the host, then listed", "os.listdir('later')"),
        by_host("made by the host, then read in", "read('later/key')"),
        by_host("made by the host, then written in", "write('later/new', os.O_CREAT)"),
        hostile(13, "deeper than the walk", "[(os.mkdir('d'), os.chdir('d')) for _ in range(70)]"),
    ]
}

#[test]
fn islands_in_a_writable_tree_hold_against_every_way_to_change_them() {
    let scene = Scene::new();
    let tree = Tree::new(&scene);
    let mut tries = on_a_read_only_file();
    tries.extend(on_the_names_of_islands());
    tries.extend(by_other_paths(&tree));
    tries.extend(on_what_is_not_there_yet(&tree));
    let tried = tree.holds(&scene, &tries);
    if !scene.has_lsm() {
        return;
    }
    for (name, action, reason, path) in [
        ("open", "open", "read-only", "ro"),
        ("openat2", "open", "read-only", "ro"),
        ("truncate", "truncate", "read-only", "ro"),
        ("chmod", "chmod", "read-only", "ro"),
        ("fchown", "chown", "read-only", "ro"),
        ("utimes", "attributes", "read-only", "ro"),
        ("setxattr", "xattr", "read-only", "ro"),
        ("through a hard link", "link", "read-only", "ro"),
        ("unlink of the island", "unlink", "held-entry", "ro"),
        ("rename of the island", "rename", "held-entry", "ro"),
        ("rename of the island's parent", "rename", "held-entry", ".git"),
        ("a file made in the island", "create", "read-only", ".git/hooks/post-commit"),
        ("reading in a closed directory", "open", "closed-file", "closed/key"),
        ("a name closed everywhere", "open", "closed-file", "src/.env"),
        ("a name closed everywhere, made", "create", "held-entry", ".git/.env"),
        ("made", "mkdir", "held-entry", "later"),
    ] {
        tree.told(&tried, name, action, reason, path);
    }
    assert!(find(&tried, "deeper than the walk").has("mkdir", "too-deep"));
    assert!(find(&tried, "odd bytes in a name").has("open", "closed-file"));
    // Of a path that is too long for a record its end is told.
    let long = find(&tried, "a path of 3400 bytes");
    assert!(long.has("open", "closed-file"), "{long:?}");
    assert!(long.paths()[0].starts_with('…') && long.paths()[0].ends_with("x/key"), "{long:?}");
}

/// Row 8. The kernel opens the layers in the sandbox's name, and they are in no rule.
#[test]
fn on_overlayfs_the_merged_tree_is_judged_and_its_layers_are_not() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let base = std::fs::canonicalize(scene.world.private()).unwrap();
    let merged = base.join("merged");
    let policy = scene.policy("").replace(
        "read_write: [/dev/null]",
        &format!("read_write: [/dev/null, {m}]\n  deny: [{m}/closed]", m = merged.display()),
    );
    let policy = policy.replace("/proc, ", &format!("/proc, {}/island, ", merged.display()));
    let in_layer = |name: &str| format!("'{}/{name}'", base.display());
    let row = |name: &str, code: &str| hostile(8, name, code);
    let tries = [
        harmless("read", "read('file')"),
        harmless("copy-up", "open('file', 'a').write(' and above')"),
        harmless("create", "open('new', 'w').write('new')"),
        harmless("rename", "os.rename('new', 'newer')"),
        harmless("mode", "os.chmod('newer', 0o600); os.utime('newer', (0, 0))"),
        harmless("remove", "os.unlink('newer')"),
        harmless("island-read", "read('island/file')"),
        row("overlay: writing in an island", "write('island/file')"),
        row("overlay: times in an island", "os.utime('island/file', (0, 0))"),
        row("overlay: a closed name made", "os.mkdir('closed')"),
        row("overlay: reading the lower directory", &format!("read({})", in_layer("lower/file"))),
        row(
            "overlay: writing the upper directory",
            &format!("write({}, os.O_CREAT)", in_layer("upper/made")),
        ),
    ];
    let mounted = Overlay::new(&base);
    let tried = attempts(
        || {
            mounted.make();
            Clawbox::new(&scene.world, &policy).workdir(&merged).with_lsm_if(has_lsm)
        },
        &tries,
    );
    if has_lsm {
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
        let upper = std::fs::read_to_string(base.join("upper/file")).unwrap();
        assert_eq!(upper, "below and above");
    }
}

/// An overlay whose directories the sandbox's user owns, mounted for one attempt after the other.
struct Overlay(PathBuf);

impl Overlay {
    fn new(base: &Path) -> Self {
        Self(base.to_owned())
    }

    fn make(&self) {
        let at = |name: &str| self.0.join(name);
        let _ = nix::mount::umount(&at("merged"));
        for directory in ["lower", "upper", "index", "merged"] {
            let _ = std::fs::remove_dir_all(at(directory));
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        std::fs::create_dir(at("lower/island")).unwrap();
        std::fs::write(at("lower/file"), "below").unwrap();
        std::fs::write(at("lower/island/file"), "below").unwrap();
        open_to_all(&self.0);
        owned_by_sandbox(&at("lower"));
        owned_by_sandbox(&at("upper"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower").display(),
            at("upper").display(),
            at("index").display()
        );
        let flags = nix::mount::MsFlags::empty();
        let (kind, options) = (Some("overlay"), Some(options.as_str()));
        nix::mount::mount(kind, &at("merged"), kind, flags, options).unwrap();
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0.join("merged"));
    }
}
