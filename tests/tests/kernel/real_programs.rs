//! Programs as people use them, run to their end under policies as people would write them: nothing
//! they need is denied, and the trail has no denial that its reader would call wrong.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clawbox_tests::clawbox::{Clawbox, Finished};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::network::{NOBODY, World};
use serde_json::Value;
use tempfile::TempDir;

use crate::attacks::attempt::PYTHON;

/// The loopback port of what a test serves, and one that a sandbox may listen on.
const SERVED: u16 = 8123;
const LISTENED: u16 = 8124;

/// npm takes half a minute of an emulated processor, which may be shared.
const PATIENCE: Duration = Duration::from_secs(400);

/// Makes what is served: a bare repository, an index with one wheel, a registry with one package.
const MAKE: &str = r##"
import base64, hashlib, io, json, os, subprocess, tarfile, zipfile
root = os.getcwd()
os.makedirs("simple/tiny-wheel"); os.makedirs("tiny-npm")
with zipfile.ZipFile("simple/tiny-wheel/tiny_wheel-1.0-py3-none-any.whl", "w") as wheel:
    info = "tiny_wheel-1.0.dist-info/"
    wheel.writestr("tiny_wheel.py", "WORD = 'from the index'\n")
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "".join(
        name + ",,\n" for name in ["tiny_wheel.py"] + [info + part for part in ("METADATA", "WHEEL", "RECORD")]))
with open("simple/tiny-wheel/index.html", "w") as page:
    page.write('<a href="tiny_wheel-1.0-py3-none-any.whl">tiny_wheel-1.0-py3-none-any.whl</a>')
packed = io.BytesIO()
package = {"name": "tiny-npm", "version": "1.0.0", "main": "main.js"}
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for name, text in (("package.json", json.dumps(package)), ("main.js", "module.exports = 'from the registry'\n")):
        entry = tarfile.TarInfo("package/" + name)
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
packed = packed.getvalue()
with open("tiny-npm/tiny-npm-1.0.0.tgz", "wb") as archive:
    archive.write(packed)
integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
tarball = "http://127.0.0.1:PORT/tiny-npm/tiny-npm-1.0.0.tgz"
package["dist"] = {"tarball": tarball, "integrity": integrity}
with open("tiny-npm/index.html", "w") as page:
    json.dump({"name": "tiny-npm", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": package}}, page)
"##;

/// A project of one C file in a bare repository, that dumb HTTP can serve too.
const REPOSITORY: &str = "set -e; mkdir src; cd src; /usr/bin/git init -q .; \
    printf 'all: hello\\nhello: hello.c\\n\\tgcc -O1 -o $@ $<\\n' > Makefile; \
    printf '#include <stdio.h>\\nint main(void) { puts(\"built\"); return 0; }\\n' > hello.c; \
    /usr/bin/git add .; \
    /usr/bin/git -c user.name=t -c user.email=t@test -c commit.gpgsign=false commit -q -m first; \
    cd ..; /usr/bin/git clone -q --bare src project.git; cd project.git; \
    /usr/bin/git update-server-info";

/// A directory that is served on the loopback of the host that clawbox runs on, and the home of the
/// sandbox's user beside it. Neither is below `/tmp`, so the sandbox has that for itself, and both
/// are on the disk where there is one.
struct Served {
    _all: TempDir,
    home: PathBuf,
    directory: PathBuf,
    server: Child,
}

impl Served {
    fn new(world: &World) -> Self {
        let all = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(all.path(), Permissions::from_mode(0o755)).unwrap();
        let [home, directory] = ["home", "served"].map(|name| all.path().join(name));
        for path in [&home, &directory] {
            std::fs::create_dir(path).unwrap();
        }
        chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
        let make = MAKE.replace("PORT", &SERVED.to_string());
        run(Command::new(PYTHON).args(["-c", &make]).current_dir(&directory));
        let mut server = Command::new(PYTHON);
        server.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", &SERVED.to_string()]);
        server.current_dir(&directory).stdout(Stdio::piped()).stderr(Stdio::null());
        world.enter(&mut server);
        let mut server = server.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("Serving"), "{line}");
        Self { _all: all, home, directory, server }
    }

    /// Adds the repository, which is the sandbox's user's: git refuses another one's.
    fn with_repository(self) -> Self {
        run(Command::new("/bin/sh").args(["-c", REPOSITORY]).current_dir(&self.directory));
        run(Command::new("chown")
            .args(["-R", &NOBODY.to_string(), "project.git"])
            .current_dir(&self.directory));
        self
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether these programs are there. On the host `cargo xtask setup` has seen to them; a guest may
/// have been made of a machine with others, and then the test says that it does nothing.
pub fn has(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|path| !Path::new(path).exists()).collect();
    let is_guest = std::env::var_os("CLAWBOX_TESTS_LSM").is_some();
    assert!(is_guest || missing.is_empty(), "not installed: {missing:?}; `cargo xtask setup`");
    if !missing.is_empty() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Past what libtest keeps of a test that passes.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: this guest has no {missing:?}");
    }
    missing.is_empty()
}

/// What a developer's agent gets: the system to read, its directory to write, one binary with what
/// it starts to the server.
fn policy(served: &Served, binary: &str) -> String {
    format!(
        "version: 1\n\
         filesystem_policy:\n  \
           include_workdir: true\n  \
           read_only: [/usr, /lib, /lib64, /bin, /etc, /proc, /dev/urandom,\n    \
             /sys/devices/system/cpu, /sys/fs/cgroup, {}]\n  \
           read_write: [/dev/null]\n\
         execution: {{ from_writable: allow }}\n\
         network_policies:\n  server:\n    \
           endpoints: [{{ host: 127.0.0.1, port: {SERVED}, host_loopback: true }}]\n    \
           binaries: [{{ path: {binary} }}]\n\
         listen: {{ ports: [{LISTENED}], addresses: [127.0.0.1] }}\n",
        served.directory.display()
    )
}

/// Runs a script with a clean environment, at home in the working directory.
#[track_caller]
fn at_home(world: &World, served: &Served, binary: &str, script: &str) -> Finished {
    let command = [
        "/usr/bin/env".to_owned(),
        "-i".to_owned(),
        format!("HOME={}", served.home.display()),
        "PATH=/usr/bin:/bin".to_owned(),
        "/bin/sh".to_owned(),
        "-ec".to_owned(),
        script.to_owned(),
    ];
    let clawbox = Clawbox::new(world, &policy(served, binary)).with_lsm();
    let run = clawbox.workdir(&served.home).patience(PATIENCE).run(&command);
    assert_eq!(run.status, 0, "{}{}\n{:#?}", run.stdout, run.stderr, run.denials());
    run
}

fn has_lsm(run: &Finished) -> bool {
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap();
    layers.iter().any(|layer| layer["layer"] == "lsm" && layer["state"] == "full")
}

/// Nothing is denied, and nothing is missing: in a guest not the LSM hooks either.
#[track_caller]
fn untroubled(run: &Finished) {
    if std::env::var_os("CLAWBOX_TESTS_LSM").is_some() {
        assert!(has_lsm(run), "{:#}", run.records("start")[0]);
    }
    let gaps: Vec<&Value> = run.trail.iter().filter(|record| record["class"] == "gap").collect();
    assert!(run.denials().is_empty() && gaps.is_empty(), "{:#?}{gaps:#?}", run.denials());
}

#[test]
fn a_repository_is_cloned_by_path_and_by_http_and_built_and_what_was_built_runs() {
    let git = "/usr/lib/git-core/git-remote-http";
    if !has(&["/usr/bin/git", git, "/usr/bin/make", "/usr/bin/gcc"]) {
        return;
    }
    let world = World::new();
    let served = Served::new(&world).with_repository();
    let script = format!(
        "git clone -q file://{}/project.git by-path; \
         git clone -q http://127.0.0.1:{SERVED}/project.git by-http; \
         cmp by-path/hello.c by-http/hello.c; cd by-http; make -s; ./hello; \
         echo '// more' >> hello.c; git diff --stat | cat; git status --short",
        served.directory.display()
    );
    let run = at_home(&world, &served, "/usr/bin/git", &script);
    assert!(run.stdout.starts_with("built\n"), "{}", run.stdout);
    assert!(run.stdout.contains(" M hello.c"), "{}", run.stdout);
    untroubled(&run);
}

#[test]
fn a_wheel_is_installed_from_an_index_and_imported() {
    if !has(&["/usr/lib/python3/dist-packages/pip"]) {
        return;
    }
    let world = World::new();
    let served = Served::new(&world);
    let script = format!(
        "python3 -m pip install -q --disable-pip-version-check --target site \
         --index-url http://127.0.0.1:{SERVED}/simple tiny-wheel; \
         PYTHONPATH=site python3 -c 'import tiny_wheel; print(tiny_wheel.WORD)'"
    );
    let mut run = at_home(&world, &served, "/usr/bin/python3*", &script);
    assert_eq!(run.stdout, "from the index\n");
    // urllib3 tries whether ::1 can be bound. `listen` does not say so, and it goes on without.
    let is_probe = |record: &Value| {
        record["action"] == "bind"
            && record["object"]["ip"] == "::1"
            && record["object"]["port"] == 0
    };
    run.trail.retain(|record| !is_probe(record));
    untroubled(&run);
}

#[test]
fn a_package_is_installed_from_a_registry_and_required() {
    if !has(&["/usr/bin/node", "/usr/bin/npm"]) {
        return;
    }
    let world = World::new();
    let served = Served::new(&world);
    let script = format!(
        "npm install --silent --no-audit --no-fund --registry http://127.0.0.1:{SERVED}/ tiny-npm; \
         node -p 'require(\"tiny-npm\")'"
    );
    let run = at_home(&world, &served, "/usr/bin/node", &script);
    assert!(run.stdout.ends_with("from the registry\n"), "{}", run.stdout);
    untroubled(&run);
}

#[test]
fn a_server_answers_a_request_of_its_own_sandbox() {
    if !has(&["/usr/bin/node"]) {
        return;
    }
    let world = World::new();
    let served = Served::new(&world);
    let program = format!(
        "const http = require('http');\
         const server = http.createServer((_, answer) => answer.end('answered'));\
         server.listen({LISTENED}, '127.0.0.1', () => \
           http.get('http://127.0.0.1:{LISTENED}/', reply => {{\
             reply.setEncoding('utf8');\
             reply.on('data', text => console.log(text));\
             reply.on('end', () => server.close());\
           }}));"
    );
    // And an attack: the sandbox's own code for a program that is named.
    let script = format!(
        "echo \"console.log('required')\" >required.js; \
         NODE_OPTIONS=--require=$HOME/required.js node -e \"{program}\""
    );
    let run = at_home(&world, &served, "/usr/bin/node", &script);
    if has_lsm(&run) {
        // Started with `AT_SECURE`, with which node takes no options from its environment.
        assert_eq!(run.stdout, "answered\n");
        layer::tell(3, "NODE_OPTIONS of a named node", Layer::BpfLsm);
    } else {
        assert_eq!(run.stdout, "required\nanswered\n");
    }
    untroubled(&run);
}

/// Some hooks see a file without the mount it is on, and a filesystem made for the sandbox has no
/// rule of its own.
#[test]
fn files_in_a_private_tmp_are_made_overwritten_dated_closed_and_moved_out() {
    let world = World::new();
    let served = Served::new(&world);
    let script = "cd /tmp; mkdir d; echo one >d/file; echo two >d/file; touch -d @1 d/file; \
                  chmod 600 d/file; cp -p d/file d/copy; truncate -s 2 d/copy; touch d; \
                  mv d/file \"$HOME\"; stat -c '%Y %a %s' \"$HOME/file\"; rm -r d; ls -A /tmp";
    let run = at_home(&world, &served, "/bin/true", script);
    assert_eq!(run.stdout, "1 600 4\n", "{}", run.stderr);
    untroubled(&run);
}
