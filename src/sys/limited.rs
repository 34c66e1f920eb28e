//! Runs a program for so long at most, and keeps the end of what it says.

use std::fs::File;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, pipe2};

use super::cmd::{Cmd, one_line, shortened};
use super::interrupt::Interrupt;
use super::steps::number_of_tests;

/// For tests: another time limit, in seconds.
pub(super) const TIME_LIMIT_OF_TESTS: &str = "IMGBASED_TIME_LIMIT";
/// How much of its last words is kept, in bytes, where people read them.
pub(super) const WORDS_MAX: usize = 2048;
/// The same where they are read by this program.
const LIST_MAX: usize = 64 << 10;
/// How often it is looked at: soon after the start, since most programs take no time, then less often.
const FIRST_INTERVAL: Duration = Duration::from_millis(2);
const INTERVAL: Duration = Duration::from_millis(50);
/// How long the others of a group that was killed are waited for: until they have ended, they have files open.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Runs a program of somebody else for `seconds` at most, and returns the end of what it said. Nothing of its process
/// group is left then: what a program has left behind would keep a root mounted.
///
/// Fails as [`Cmd::run`] does, also when the time is over. A signal ends the program.
pub fn run(cmd: &Cmd, seconds: u32, interrupt: &Interrupt) -> Result<String> {
    let seconds = number_of_tests(TIME_LIMIT_OF_TESTS).unwrap_or(seconds);
    let command = cmd.clone().uninterrupted().command();
    said_by(command, seconds, interrupt, WORDS_MAX)
}

/// What a program of the host may take that reads what can come from anywhere.
pub struct Limits {
    pub seconds: u32,
    /// Of each of its processes, in bytes.
    pub memory: u64,
    /// The largest file that it can write, in bytes.
    pub file: u64,
}

/// Does the same with such a program. The kernel ends it where this process has been killed.
pub fn run_within(cmd: &Cmd, limits: &Limits, interrupt: &Interrupt) -> Result<String> {
    log::debug!("+ {cmd}");
    let limit = Cmd::new("prlimit")
        .arg(format!("--cpu={}", limits.seconds))
        .arg(format!("--as={}", limits.memory))
        .arg(format!("--fsize={}", limits.file));
    let command = cmd.clone().uninterrupted().run_by(limit);
    said_by(command, limits.seconds, interrupt, LIST_MAX)
}

fn said_by(
    mut command: Command,
    seconds: u32,
    interrupt: &Interrupt,
    words_max: usize,
) -> Result<String> {
    let limit = Duration::from_secs(seconds.into());
    let go_on = || interrupt.check();
    let end = watch(&mut command, limit, &go_on, true, words_max)?;
    let why = match end.cut_off {
        None if end.status.success() => return Ok(end.words),
        None => end.status.to_string(),
        Some(why) => why,
    };
    match one_line(end.words.as_bytes()) {
        said if said.is_empty() => bail!("{why}"),
        said => bail!("{} ({why})", shortened(&said)),
    }
}

/// How a program has ended.
pub(super) struct End {
    /// The end of what it said, on standard output and standard error together.
    pub words: String,
    pub status: ExitStatus,
    /// Why it was killed before it has ended by itself.
    pub cut_off: Option<String>,
}

/// Runs a program until it has ended, the time is over, or `go_on` fails. It is killed then, with its process
/// group if it `has_group` of its own, whether it has ended by itself or not.
pub(super) fn watch(
    command: &mut Command,
    limit: Duration,
    go_on: &dyn Fn() -> Result<()>,
    has_group: bool,
    words_max: usize,
) -> Result<End> {
    let (input, output) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&input, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("it could not be started")?;
    let pid = i32::try_from(child.id())?;
    let mut words = LastWords::of(input.into(), words_max);
    let deadline = Instant::now() + limit;
    let mut interval = FIRST_INTERVAL;
    let cut_off = loop {
        let has_more = words.listen();
        if has_ended(pid) {
            break None;
        }
        if Instant::now() >= deadline {
            break Some(format!("it was ended after {} s", limit.as_secs()));
        }
        if let Err(why) = go_on() {
            break Some(why.to_string());
        }
        if !has_more {
            sleep(interval);
            interval = (interval * 2).min(INTERVAL);
        }
    };
    // Fails only if nothing of it is left. Nobody else can have its number before it has been waited for.
    let victim = if has_group { -pid } else { pid };
    let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
    let status = child.wait()?;
    let deadline = Instant::now() + LETTING_GO;
    while has_group && kill(Pid::from_raw(victim), None).is_ok() && Instant::now() < deadline {
        sleep(FIRST_INTERVAL);
    }
    // All that a pipe holds.
    words.listen();
    Ok(End {
        words: words.text(),
        status,
        cut_off,
    })
}

/// Whether a child has ended; it is still to be waited for.
fn has_ended(pid: i32) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid)), look) != Ok(WaitStatus::StillAlive)
}

/// The end of what programs say, without what would do something to a terminal.
struct LastWords {
    pipe: File,
    buffer: Vec<u8>,
    heard: Vec<u8>,
    /// How many bytes are kept.
    max: usize,
}

impl LastWords {
    /// From a pipe that does not wait.
    fn of(pipe: File, max: usize) -> Self {
        Self {
            pipe,
            buffer: vec![0; 64 << 10],
            heard: Vec::new(),
            max,
        }
    }

    /// Reads what there is, up to a limit. Returns whether there was anything.
    fn listen(&mut self) -> bool {
        // Nothing now, or never again.
        let Ok(count @ 1..) = self.pipe.read(&mut self.buffer) else {
            return false;
        };
        self.heard.extend_from_slice(&self.buffer[..count]);
        let over = self.heard.len().saturating_sub(self.max);
        self.heard.drain(..over);
        true
    }

    fn text(&self) -> String {
        let is_plain = |c: char| c == '\n' || !c.is_control();
        let text = String::from_utf8_lossy(&self.heard);
        let text: String = text
            .chars()
            .map(|c| if is_plain(c) { c } else { ' ' })
            .collect();
        text.trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    /// More than any of the scripts takes.
    const LONG: u32 = 60;

    fn shell(script: &str, seconds: u32) -> Result<String> {
        let cmd = Cmd::new("sh").args(["-c", script]);
        run(&cmd, seconds, &Interrupt::default())
    }

    /// Whether the process is there whose number is in a file, and has not ended.
    fn lives(file: &Path) -> bool {
        let pid = fs::read_to_string(file).unwrap();
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.is_ok_and(|state| !state.contains(") Z"))
    }

    #[test]
    fn what_it_says_is_returned_and_told_where_it_fails() {
        for (script, wanted) in [
            ("true", Ok("")),
            ("echo one; echo two >&2", Ok("one\ntwo")),
            ("printf 'a\\033b'", Ok("a b")),
            ("exit 3", Err("exit status: 3")),
            (
                "echo one; echo two; exit 3",
                Err("one; two (exit status: 3)"),
            ),
            ("kill -9 $$", Err("signal: 9 (SIGKILL)")),
        ] {
            let got = shell(script, LONG).map_err(|error| error.to_string());
            let wanted = wanted.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(got, wanted, "{script}");
        }
    }

    fn said(pieces: &[&[u8]]) -> String {
        let (input, output) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let mut words = LastWords::of(input.into(), WORDS_MAX);
        let mut output = File::from(output);
        for piece in pieces {
            output.write_all(piece).unwrap();
            assert!(words.listen());
        }
        assert!(!words.listen());
        drop(output);
        assert!(!words.listen());
        words.text()
    }

    #[test]
    fn of_what_a_program_says_the_end_is_told_and_nothing_for_a_terminal() {
        for (pieces, told) in [
            (&[][..], ""),
            (&[&b"one\n"[..], b"two\n"], "one\ntwo"),
            (&[b"\x1b[2Jgone\x07\r\n"], "[2Jgone"),
            (&["schön".as_bytes(), b"\xff\n"], "schön\u{fffd}"),
        ] {
            assert_eq!(said(pieces), told, "{pieces:?}");
        }
        let long = said(&[&vec![b'a'; 60_000], b"end\n"]);
        assert_eq!(long.len(), WORDS_MAX - 1);
        assert!(long.ends_with("aend"), "{long}");
    }

    #[test]
    fn nothing_of_its_process_group_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = |last: &str| format!("sleep 1000 & echo $! >{}; {last}", file.display());
        // Not even one that holds the pipe keeps it from being over.
        assert_eq!(shell(&script("echo done"), LONG).unwrap(), "done");
        assert!(!lives(&file));
        let error = shell(&script("echo waiting; wait"), 1).unwrap_err();
        assert_eq!(error.to_string(), "waiting (it was ended after 1 s)");
        assert!(!lives(&file));
    }

    #[test]
    fn what_reads_foreign_input_stays_within_limits() {
        let limits = |seconds| Limits {
            seconds,
            memory: 256 << 20,
            file: 1 << 20,
        };
        let dir = tempfile::tempdir().unwrap();
        for (script, seconds, wanted) in [
            ("echo one; echo two", LONG, Ok("one\ntwo")),
            (
                "seq 2000 | wc -l; exit 4",
                LONG,
                Err("2000 (exit status: 4)"),
            ),
            ("sleep 1000 & wait", 1, Err("it was ended after 1 s")),
            // dd(1) takes a buffer of that size.
            (
                "dd if=/dev/zero of=/dev/null bs=512M count=1",
                LONG,
                Err("memory exhausted"),
            ),
            (
                "trap '' XFSZ; head -c 2M /dev/zero >\"$0/large\"",
                LONG,
                Err("File too large"),
            ),
            ("ulimit -t", 7, Ok("7")),
        ] {
            let cmd = Cmd::new("sh").args(["-c", script]).arg(dir.path());
            let got = run_within(&cmd, &limits(seconds), &Interrupt::default());
            match (got, wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{script}"),
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{script}: {error}");
                }
                (got, _) => panic!("{script}: {got:?}"),
            }
        }
        let list = Cmd::new("seq").args(["1000"]);
        let list = run_within(&list, &limits(LONG), &Interrupt::default()).unwrap();
        assert_eq!(list.lines().next(), Some("1"));
    }

    #[test]
    fn a_signal_ends_it() {
        let interrupt = Interrupt::default();
        interrupt.set();
        let error = run(&Cmd::new("sleep").arg("1000"), LONG, &interrupt).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    #[test]
    fn one_that_is_not_there_is_an_error() {
        let error = run(&Cmd::new("no-such-program"), 1, &Interrupt::default()).unwrap_err();
        assert!(
            error.to_string().contains("could not be started"),
            "{error}"
        );
    }
}
