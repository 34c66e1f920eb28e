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

use super::progress::Waiting;

/// Where programs are looked for, whatever the caller's own `PATH` says.
const SEARCH_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// All that is in the environment of a program. Most tools can be told by a variable to do something else, as
/// tar by `TAR_OPTIONS` and bash by `BASH_ENV`, so nothing of the caller's gets there.
pub(super) const ENVIRONMENT: [(&str, &str); 3] = [
    ("PATH", SEARCH_PATH),
    // What is printed is read.
    ("LC_ALL", "C"),
    // Files that the caller has left open are not lvm2's business.
    ("LVM_SUPPRESS_FD_WARNINGS", "1"),
];

/// This program, and where the kernel has it, whatever its file is called and whether it is still there.
const THIS: &str = "imgbased-helper";
const THIS_FILE: &str = "/proc/self/exe";

/// A program and its arguments, not yet run. Displayed as a line that a shell takes.
#[derive(Clone, Debug)]
pub struct Cmd {
    program: &'static str,
    args: Vec<OsString>,
    accepted: &'static [i32],
    uninterrupted: bool,
    ends_unread: bool,
    /// Beside those of [`ENVIRONMENT`].
    variables: Vec<(&'static str, OsString)>,
}

impl Cmd {
    pub fn new(program: &'static str) -> Self {
        Self {
            program,
            args: Vec::new(),
            accepted: &[0],
            uninterrupted: false,
            ends_unread: false,
            variables: Vec::new(),
        }
    }

    /// This program itself.
    pub fn this() -> Self {
        Self::new(THIS)
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

    /// Says that the program ends by itself when nobody reads its standard output any more, with all that it
    /// has started. It is not killed then.
    pub fn ends_unread(mut self) -> Self {
        self.ends_unread = true;
        self
    }

    /// Gives the program this variable, too. It is not shown: it can hold a password.
    pub fn variable(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// Runs the program to its end and returns what it wrote to standard output.
    ///
    /// Standard input is empty; the locale is C. The error tells the program, what that wrote to standard error,
    /// and its exit status. The log has the command.
    pub fn run(&self) -> Result<String> {
        log::debug!("+ {self}");
        let _waiting = Waiting::new(|| self.name());
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
        if self.program == THIS {
            return Some(THIS_FILE.into());
        }
        let dirs = SEARCH_PATH.split(':').map(Path::new);
        dirs.map(|dir| dir.join(self.program))
            .find(|path| path.exists())
    }

    pub(super) fn command(&self) -> Command {
        // By its path, since the standard library forks, rather than spawns, to search another `PATH`.
        let path = self.path().unwrap_or_else(|| self.program.into());
        let mut command = Command::new(path);
        if self.uninterrupted {
            command.process_group(0);
        }
        command.args(&self.args).env_clear().envs(ENVIRONMENT);
        let variables = self.variables.iter();
        command.envs(variables.map(|(name, value)| (name, value)));
        command
    }

    /// The same, run by another program, which gets it as its last arguments.
    pub(super) fn run_by(&self, other: Self) -> Command {
        let program = self.path().unwrap_or_else(|| self.program.into());
        let other = other.arg(program).args(&self.args);
        Self {
            uninterrupted: self.uninterrupted,
            ..other
        }
        .command()
    }

    /// What people call it.
    fn name(&self) -> String {
        match self.args.first() {
            Some(verb) if self.program == "lvm" => format!("lvm {}", verb.to_string_lossy()),
            _ => self.program.to_owned(),
        }
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
            _ => bail!("{}: {} ({status})", self.name(), shortened(&stderr)),
        }
    }
}

/// A program that was started. It is ended when this is dropped.
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
        let _waiting = Waiting::new(|| self.cmd.name());
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

    /// Waits for the program's end. Returns its exit status, none if a signal has ended it, and its standard error on
    /// one line, without what would do something to a terminal.
    pub fn end_of(mut self) -> Result<(Option<i32>, String)> {
        let status = self.child.wait()?;
        let mut stderr = Vec::new();
        self.stderr.rewind()?;
        self.stderr.read_to_end(&mut stderr)?;
        let said = one_line(&stderr).replace(char::is_control, " ");
        Ok((status.code(), shortened(&said)))
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
        if self.cmd.ends_unread {
            drop(self.child.stdout.take());
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// What a program wrote, on one line.
pub(super) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines.join("; ")
}

/// The begin and the end of a text that is too long for one line: some tools print all of their help after what is
/// wrong.
pub(super) fn shortened(text: &str) -> String {
    const PART: usize = 300;
    let length = text.chars().count();
    if length <= 2 * PART {
        return text.to_owned();
    }
    let begin: String = text.chars().take(PART).collect();
    let end: String = text.chars().skip(length - PART).collect();
    format!("{begin} ... {end}")
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
    let Some(text) = word.to_str() else {
        return format!("\"$(printf '{}')\"", as_format(word.as_bytes()));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-/:=,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Any bytes as a format in single quotes that printf(1) of each shell gives back: with octal numbers for what is no
/// text, or could be read as something else.
pub(super) fn as_format(bytes: &[u8]) -> String {
    let mut format = String::with_capacity(bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => format.push_str("%%"),
            // An option begins with a hyphen.
            b'-' if at == 0 => format.push_str("\\055"),
            b'\\' | b'\'' => format.push_str(&format!("\\{byte:03o}")),
            b'\n' | b' '..=b'~' => format.push((*byte).into()),
            _ => format.push_str(&format!("\\{byte:03o}")),
        }
    }
    format
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    #[test]
    fn is_shown_as_a_shell_reads_it() {
        let cmd = Cmd::new("lvm").args(["lvs", "-o", "lv_name", "a b", "it's", "", "$x"]);
        assert_eq!(
            cmd.to_string(),
            r"lvm lvs -o lv_name 'a b' 'it'\''s' '' '$x'"
        );
        assert_eq!(Cmd::this().arg("x").to_string(), "imgbased-helper x");
        let odd = OsStr::from_bytes(b"/a b/$x's \xff");
        assert_eq!(quote(odd), r#""$(printf '/a b/$x\047s \377')""#);
        let shown = Cmd::new("printf").arg("%s").arg(odd).to_string();
        let shell = Command::new("sh").args(["-c", &shown]).output().unwrap();
        assert_eq!(shell.stdout, odd.as_bytes());
    }

    #[test]
    fn a_variable_is_given_and_not_shown() {
        let cmd = Cmd::new("sh")
            .args(["-c", "echo $PROXY"])
            .variable("PROXY", "http://u:p@h");
        assert_eq!(cmd.run().unwrap(), "http://u:p@h\n");
        assert!(!cmd.to_string().contains("http"));
    }

    #[test]
    fn an_error_tells_what_the_program_wrote_and_not_the_whole_command() {
        let error = Cmd::new("sh")
            .args(["-c", "echo one >&2; echo two >&2; exit 3"])
            .run()
            .unwrap_err();
        assert_eq!(error.to_string(), "sh: one; two (exit status: 3)");
        let error = Cmd::new("sh").args(["-c", "exit 3"]).run().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`sh -c 'exit 3'` failed (exit status: 3)"
        );
        let lvm = Cmd::new("lvm").args(["lvs", "-o", "lv_name"]);
        assert_eq!(lvm.name(), "lvm lvs");
        let long = shortened(&format!("cause{}end", "x".repeat(5000)));
        assert!(long.starts_with("causex") && long.ends_with("xend"));
        assert_eq!(long.len(), 605);
    }

    /// The name of a test, which runs itself once more with the variables below.
    const THIS_TEST: &str = "sys::cmd::tests::no_variable_of_the_caller_reaches_a_program";
    /// What would have a program do something else than it is told.
    const HOSTILE: [&str; 17] = [
        "BASH_ENV",
        "BLKID_FILE",
        "DM_DISABLE_UDEV",
        "IMGBASED_KILL_AFTER",
        "LD_PRELOAD",
        "LIBMOUNT_FSTAB",
        "LVM_SYSTEM_DIR",
        "LVM_VG_NAME",
        "MKE2FS_CONFIG",
        "MODPROBE_OPTIONS",
        "SYSTEMD_ESP_PATH",
        "TAR_OPTIONS",
        "TMPDIR",
        "XZ_DEFAULTS",
        "XZ_OPT",
        "ZSTD_CLEVEL",
        "dracutbasedir",
    ];

    #[test]
    fn no_variable_of_the_caller_reaches_a_program() {
        if HOSTILE.iter().all(|name| env::var_os(name).is_some()) {
            let pipe = |mut running: Running| {
                let mut text = String::new();
                let mut pipe = running.stdout().unwrap();
                pipe.read_to_string(&mut text).unwrap();
                running.wait().map(|_| text)
            };
            let cmd = Cmd::new("env");
            let wanted: Vec<String> = ENVIRONMENT
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            for text in [
                cmd.run(),
                cmd.clone().uninterrupted().run(),
                cmd.start(Stdio::null(), Stdio::piped()).and_then(pipe),
            ] {
                let mut seen: Vec<String> = text.unwrap().lines().map(str::to_owned).collect();
                seen.sort_by_key(|line| wanted.iter().position(|wanted| wanted == line));
                assert_eq!(seen, wanted);
            }
            return;
        }
        let again = Command::new(env::current_exe().unwrap())
            .args(["--exact", THIS_TEST])
            .env("PATH", "/root/bin")
            .env("LC_ALL", "de_DE.UTF-8")
            .envs(HOSTILE.map(|name| (name, "1")))
            .output()
            .unwrap();
        assert!(again.status.success(), "{again:?}");
    }

    #[test]
    fn one_that_ends_unread_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let done = dir.path().join("done");
        // A shell that writes to a pipe without a reader is killed, unless it wants to go on.
        let script = "trap '' PIPE; while echo; do sleep 0.01; done 2>/dev/null; touch \"$0\"";
        let cmd = Cmd::new("sh").args(["-c", script]).arg(&done).ends_unread();
        let running = cmd.start(Stdio::null(), Stdio::piped()).unwrap();
        assert!(running.wait_with(|| bail!("enough")).is_err());
        assert!(done.exists());
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
        assert_eq!(error, "sh: a (exit status: 4)");
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
