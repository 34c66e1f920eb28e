//! The one way to run another program.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::string::FromUtf8Error;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where programs are looked for, whatever the caller's own `PATH` says.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments, not yet run. Displayed as a line that a shell takes.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: &'static str,
    args: Vec<OsString>,
    accepted: &'static [i32],
    uninterrupted: bool,
}

impl Cmd {
    pub fn new(program: &'static str) -> Self {
        Self {
            program,
            args: Vec::new(),
            accepted: &[0],
            uninterrupted: false,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args
            .extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// The exit statuses that count as success, instead of 0 alone.
    pub fn accept(mut self, statuses: &'static [i32]) -> Self {
        self.accepted = statuses;
        self
    }

    /// The line for a shell that ends at the first failure: a status that counts as success is none.
    pub fn line(&self) -> String {
        match self.accepted.iter().max() {
            Some(most) if *most > 0 => format!("{self} || [ $? -le {most} ]"),
            _ => self.to_string(),
        }
    }

    /// Runs in a process group of its own, so that Ctrl-C does not reach it.
    pub fn uninterrupted(mut self) -> Self {
        self.uninterrupted = true;
        self
    }

    /// Runs the program to its end and returns what it wrote to standard output.
    ///
    /// Standard input is empty; the locale is C. The error names the command, its exit status and
    /// its standard error.
    pub fn run(&self) -> Result<String> {
        log::debug!("+ {self}");
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .command()
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.not_started())?;
        self.judge(status, &stderr)?;
        let lossy = |error: FromUtf8Error| String::from_utf8_lossy(error.as_bytes()).into_owned();
        Ok(String::from_utf8(stdout).unwrap_or_else(lossy))
    }

    /// Starts the program, with these as its standard input and output.
    pub fn start(&self, input: Stdio, output: Stdio) -> Result<Running> {
        log::debug!("+ {self}");
        // A file takes any amount, where a full pipe would stop the program; and one in memory can be made
        // where no filesystem can be written to.
        let stderr = memfd_create(c"stderr", MFdFlags::MFD_CLOEXEC)
            .map(File::from)
            .context("cannot make a file in memory")?;
        let child = self
            .command()
            .stdin(input)
            .stdout(output)
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| self.not_started())?;
        Ok(Running {
            cmd: self.clone(),
            child,
            stderr,
        })
    }

    /// Refuses a program that is not installed.
    pub fn check_installed(&self) -> Result<()> {
        ensure!(
            self.path().is_some(),
            "{} is needed, but not installed",
            self.program
        );
        Ok(())
    }

    fn path(&self) -> Option<PathBuf> {
        let dirs = SEARCH_PATH.split(':').map(Path::new);
        dirs.map(|dir| dir.join(self.program))
            .find(|path| path.exists())
    }

    fn command(&self) -> Command {
        // By its path, since the standard library forks, rather than spawns, to search another `PATH`.
        let path = self.path().unwrap_or_else(|| self.program.into());
        let mut command = Command::new(path);
        if self.uninterrupted {
            command.process_group(0);
        }
        command
            .args(&self.args)
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1");
        command
    }

    fn not_started(&self) -> String {
        format!("{} could not be started", self.program)
    }

    /// Fails unless the exit status is an accepted one.
    fn judge(&self, status: ExitStatus, stderr: &[u8]) -> Result<()> {
        let stderr = one_line(stderr);
        match status.code() {
            Some(code) if self.accepted.contains(&code) => {
                if !stderr.is_empty() {
                    log::debug!("{}: {stderr}", self.program);
                }
                Ok(())
            }
            _ if stderr.is_empty() => bail!("`{self}` failed ({status})"),
            _ => bail!("`{self}` failed ({status}): {stderr}"),
        }
    }
}

/// A program that was started. It is killed when this is dropped.
pub struct Running {
    cmd: Cmd,
    child: Child,
    stderr: File,
}

impl Running {
    /// The pipe that the program writes to, if it was given one.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Hands over each line of the pipe that the program writes to as soon as it is written, and waits for
    /// the program's end.
    ///
    /// Fails as [`Cmd::run`] does, else with the first error of `take`.
    pub fn lines(mut self, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut taken = Ok(());
        for line in self
            .stdout()
            .into_iter()
            .flat_map(|pipe| BufReader::new(pipe).split(b'\n'))
        {
            let line = line?;
            if taken.is_ok() {
                taken = take(&String::from_utf8_lossy(&line));
            }
        }
        self.wait()?;
        taken
    }

    /// Waits for the program's end; fails as [`Cmd::run`] does. Returns its standard error.
    pub fn wait(mut self) -> Result<String> {
        let status = self.child.wait()?;
        self.end(status)
    }

    /// Waits for the program's end; now and then calls `meanwhile`, and kills the program if that
    /// fails.
    pub fn wait_with(mut self, mut meanwhile: impl FnMut() -> Result<()>) -> Result<String> {
        const INTERVAL: Duration = Duration::from_millis(50);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            meanwhile()?;
            sleep(INTERVAL);
        };
        self.end(status)
    }

    fn end(&mut self, status: ExitStatus) -> Result<String> {
        let mut stderr = Vec::new();
        self.stderr.rewind()?;
        self.stderr.read_to_end(&mut stderr)?;
        self.cmd.judge(status, &stderr)?;
        Ok(String::from_utf8_lossy(&stderr).into_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program wrote, on one line.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines.join("; ")
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program)?;
        for arg in &self.args {
            write!(f, " {}", quote(arg))?;
        }
        Ok(())
    }
}

/// `word` as a shell reads it back.
pub fn quote(word: &OsStr) -> String {
    let text = String::from_utf8_lossy(word.as_bytes());
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-/:=,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_shown_as_a_shell_reads_it() {
        let cmd = Cmd::new("lvm").args(["lvs", "-o", "lv_name", "a b", "it's", "", "$x"]);
        assert_eq!(
            cmd.to_string(),
            r"lvm lvs -o lv_name 'a b' 'it'\''s' '' '$x'"
        );
    }

    #[test]
    fn an_error_names_the_command_its_status_and_its_standard_error() {
        let error = Cmd::new("sh")
            .args(["-c", "echo one >&2; echo two >&2; exit 3"])
            .run()
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("one; two"),
            "{text}"
        );
    }

    #[test]
    fn other_statuses_can_be_accepted() {
        let cmd = Cmd::new("sh")
            .args(["-c", "echo out; exit 1"])
            .accept(&[0, 1]);
        assert_eq!(cmd.run().unwrap(), "out\n");
    }

    #[test]
    fn a_started_program_is_killed_when_waiting_fails() {
        let start = |script: &str| {
            let cmd = Cmd::new("sh").args(["-c", script]);
            cmd.start(Stdio::null(), Stdio::null()).unwrap()
        };
        let error = start("sleep 1000")
            .wait_with(|| bail!("enough"))
            .unwrap_err();
        assert_eq!(error.to_string(), "enough");
        assert_eq!(start("echo a >&2").wait().unwrap(), "a\n");
        let error = start("echo a >&2; exit 4").wait().unwrap_err().to_string();
        assert!(error.ends_with("(exit status: 4): a"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Cmd::new("no-such-program").check_installed().unwrap_err();
        assert_eq!(
            error.to_string(),
            "no-such-program is needed, but not installed"
        );
        let error = Cmd::new("no-such-program").run().unwrap_err();
        assert!(format!("{error:#}").starts_with("no-such-program could not be started: "));
    }
}
