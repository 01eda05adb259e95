//! What is left of programs that end with pages on a device (DRV-2, LIFE-5): the status that they would have had, and nothing else.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_isomem-conformance");
/// A program that takes longer hangs: each ends within a second.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A program that ends so, in a process group of its own.
fn start(how: &str, level: &str) -> Child {
    let test = std::env::current_exe().expect("the test has a path");
    Command::new(PROGRAM)
        .args(["--end", how])
        .env("LD_PRELOAD", test.with_file_name("libisomem_preload.so"))
        .env("ISOMEM_EXACTNESS", level)
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("the program runs")
}

/// Its status, and what it and its children said. Waits for the whole group to be gone.
fn ended(mut child: Child) -> (ExitStatus, String) {
    let group = child.id();
    let status = within(&format!("program {group}"), || child.try_wait().expect("it is ours"));
    let mut said = String::new();
    // Ends when the last process that has the pipe does.
    child
        .stdout
        .take()
        .expect("a pipe")
        .read_to_string(&mut said)
        .expect("text");
    within(&format!("group {group}"), || is_gone(group).then_some(()));
    (status, said)
}

fn within<R>(what: &str, mut look: impl FnMut() -> Option<R>) -> R {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < TIME_LIMIT, "{what} does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether no process of the group runs. One that ended and that nobody waited for counts as gone: that is its new parent's business.
fn is_gone(group: u32) -> bool {
    let processes = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    !processes
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .any(|stat| {
            // After the name, which may hold anything: state, parent, group.
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let mut fields = rest.split(' ');
            let state = fields.next().unwrap_or("Z");
            fields.nth(1) == Some(&group.to_string()) && state != "Z" && state != "X"
        })
}

fn at_each_level(how: &str, check: impl Fn(ExitStatus, &str)) {
    for level in ["interposed", "exact"] {
        let (status, said) = ended(start(how, level));
        println!("{how} at the {level} level: {status}");
        check(status, &said);
    }
}

fn exits(how: &str, code: i32) {
    at_each_level(how, |status, said| {
        assert_eq!(status.code(), Some(code), "{how}: {said}");
    });
}

fn is_killed(how: &str, signal: i32) {
    at_each_level(how, |status, said| {
        assert_eq!(status.signal(), Some(signal), "{how}: {status}, {said}");
    });
}

#[test]
fn drv_2_a_program_returns_with_pages_on_the_device() {
    exits("return", 0);
}

#[test]
fn drv_2_a_thread_exits_while_another_gives_commands() {
    exits("exit-in-thread", 5);
}

#[test]
fn drv_2_a_program_aborts() {
    is_killed("abort", 6);
}

#[test]
fn drv_2_a_program_crashes() {
    is_killed("segv", 11);
}

#[test]
fn drv_2_a_program_crashes_while_a_thread_gives_commands() {
    is_killed("segv-in-commands", 11);
}

#[test]
fn drv_2_a_program_handles_its_faults_on_pages_of_the_device() {
    exits("handled-segv", 0);
}

#[test]
fn drv_2_a_program_closes_every_descriptor_at_once() {
    let (status, said) = ended(start("close-range", "interposed"));
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn drv_2_a_program_becomes_another() {
    exits("exec", 0);
}

/// Kills a program at some moment after it said that it is ready.
fn kill_when_ready(how: &str, level: &str, after: Duration) -> (ExitStatus, String) {
    let mut child = start(how, level);
    let mut ready = [0; 6];
    let stdout = child.stdout.as_mut().expect("a pipe");
    stdout.read_exact(&mut ready).expect("it says that it is ready");
    std::thread::sleep(after);
    child.kill().expect("it is ours");
    ended(child)
}

#[test]
fn drv_2_a_program_is_killed_in_the_middle_of_commands() {
    for level in ["interposed", "exact"] {
        for round in 0..10 {
            let (status, _) = kill_when_ready("commands", level, Duration::from_micros(700 * round));
            assert_eq!(status.signal(), Some(9));
        }
    }
}

#[test]
fn drv_2_who_inherited_a_descriptor_goes_on_when_the_opener_is_killed() {
    for level in ["interposed", "exact"] {
        for round in 0..5 {
            let (status, said) = kill_when_ready("opener-killed", level, Duration::from_millis(1 + round));
            assert_eq!(status.signal(), Some(9));
            assert!(said.contains("heir: well"), "{said}");
        }
    }
}
