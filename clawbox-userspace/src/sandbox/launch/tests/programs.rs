//! Ordinary programs under an ordinary policy: the backstops must not be what stops them.
//! A program that this machine does not have is skipped.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::*;

/// A command that enters the backstops before it is executed.
pub(super) fn command(prepared: Prepared, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    // SAFETY: `enter` is async-signal-safe.
    unsafe { command.pre_exec(move || prepared.entry.enter()) };
    command
}

fn works(program: &str, args: &[&str], want: &str) {
    if not_root() || !Path::new(program).exists() {
        return;
    }
    let home = open_directory();
    // /dev/shm: Python's multiprocessing locks are POSIX semaphores.
    let writable = [home.path(), Path::new("/dev/shm")];
    let (prepared, _) = prepare(&everyday(&writable)).unwrap();
    let output = command(prepared, Path::new(program))
        .args(args)
        .env("HOME", home.path())
        .env("TMPDIR", home.path())
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains(want), "{}\n{out}\n{err}", output.status);
}

#[test]
fn a_shell_works() {
    works("/bin/sh", &["-c", "ls / >/dev/null; (echo sub); echo a | cat | tr a b"], "b");
}

#[test]
fn python_works() {
    let program = r#"
import asyncio, os, socket, subprocess, tempfile, threading
results = []
thread = threading.Thread(target=lambda: results.append(1)); thread.start(); thread.join()
assert subprocess.run(["/bin/echo", "x"], capture_output=True).stdout == b"x\n"
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        socket.socket(family, kind).close()
a, b = socket.socketpair(); a.send(b"y"); assert b.recv(1) == b"y"
assert socket.getaddrinfo("localhost", 80)
assert socket.if_nameindex()
async def child():
    process = await asyncio.create_subprocess_exec("/bin/true")
    return await process.wait()
assert asyncio.run(child()) == 0
if os.fork() == 0: os._exit(0)
os.wait()
with tempfile.NamedTemporaryFile() as file: file.write(b"z")
import multiprocessing
queue = multiprocessing.SimpleQueue()
print("works", results)
"#;
    works("/usr/bin/python3", &["-c", program], "works [1]");
}

#[test]
fn node_works() {
    let program = r#"
const { execFileSync } = require('child_process');
const { Worker } = require('worker_threads');
const fs = require('fs'), net = require('net'), path = require('path');
fs.writeFileSync(path.join(process.env.TMPDIR, 'file'), 'x');
execFileSync('/bin/true');
const server = net.createServer(c => c.end('y'));
server.listen(path.join(process.env.TMPDIR, 'socket'), () => {
  const client = net.connect(path.join(process.env.TMPDIR, 'socket'));
  client.on('data', () => server.close(() => {
    new Worker('require("worker_threads").parentPort.postMessage(1)', { eval: true })
      .on('message', () => console.log('works'));
  }));
});
"#;
    works("/usr/bin/node", &["-e", program], "works");
}

#[test]
fn curl_and_git_start() {
    works("/usr/bin/curl", &["--version"], "curl");
    works("/usr/bin/git", &["--version"], "git");
}

#[test]
fn a_compiler_works() {
    let script = "echo 'int main(){return 0;}' >$TMPDIR/a.c && cc -o $TMPDIR/a $TMPDIR/a.c && \
                  $TMPDIR/a && echo works";
    if Path::new("/usr/bin/cc").exists() {
        works("/bin/sh", &["-c", script], "works");
    }
}
