//! Commands in a machine, typed on its serial line.

use std::time::Duration;

use anyhow::Result;

use super::console::{DEBUG, EMERGENCY};
use super::guest::quote;
use super::qemu::Vm;

/// From the firmware to the login, on slow machines under software emulation.
const BOOT: Duration = Duration::from_secs(600);
/// For an answer to one key.
const ANSWER: Duration = Duration::from_secs(10);
/// For a command that starts other programs, not for one that works for long.
const COMMAND: Duration = Duration::from_secs(600);

/// What a command printed, on stdout and stderr together, and its exit status.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    pub text: String,
    pub status: i32,
}

impl Vm {
    /// Waits for the login prompt and logs in as root, who has no password.
    pub fn log_in(&mut self) -> Result<()> {
        self.log_in_with(None)
    }

    /// The same for a root with a password.
    pub fn log_in_with(&mut self, password: Option<&str>) -> Result<()> {
        self.console.wait_for("login prompt", " login: ", BOOT)?;
        self.say("login prompt");
        self.console.send("root\r")?;
        if let Some(password) = password {
            self.console.wait_for("question", "Password: ", BOOT)?;
            self.console.send(&format!("{password}\r"))?;
        }
        self.console.wait_for("shell prompt", "# ", BOOT)?;
        self.prepare_shell()?;
        // The end of the boot is recorded after the prompt is there. What failed, tests see themselves.
        self.run("systemctl is-system-running --wait")?;
        self.say("booted");
        Ok(())
    }

    /// Waits for the emergency shell and enters it; returns what the console said before it.
    pub fn enter_emergency_shell(&mut self) -> Result<String> {
        let before = self.console.wait_for("emergency shell", EMERGENCY, BOOT)?;
        self.say("emergency shell");
        // sulogin throws away what is typed before it waits for it.
        let mut prompt = Ok(String::new());
        for _ in 0..10 {
            self.console.send("\r")?;
            prompt = self
                .console
                .wait_for("emergency shell's prompt", "# ", ANSWER);
            if prompt.is_ok() {
                break;
            }
        }
        prompt?;
        self.prepare_shell()?;
        Ok(before)
    }

    /// Waits for the shell that dracut starts itself, where there is no systemd; returns what the
    /// console said before it.
    pub fn enter_debug_shell(&mut self) -> Result<String> {
        let before = self.console.wait_for("debug shell", DEBUG, BOOT)?;
        self.say("debug shell");
        self.console.wait_for("shell prompt", "# ", BOOT)?;
        self.prepare_shell()?;
        Ok(before)
    }

    /// Runs `command` in a POSIX shell; what it reads from stdin is empty.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.run_for(command, COMMAND)
    }

    /// Like [`Vm::run`], for a command that may take up to `limit`.
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.commands += 1;
        let number = self.commands;
        let quoted = quote(command);
        // The quotes inside the marks keep the terminal's echo of this line from looking like them.
        self.console.send(&format!(
            "echo '@@''begin-{number}@'; eval {quoted} </dev/null 2>&1; echo '@@''end-{number}@'$?@\r"
        ))?;
        self.console
            .wait_for("start of the command", &format!("@@begin-{number}@"), limit)?;
        let what = format!("end of `{command}`");
        let text = self
            .console
            .wait_for(&what, &format!("@@end-{number}@"), limit)?;
        let status = self.console.wait_for("exit status", "@", limit)?;
        match status.parse() {
            Ok(status) => Ok(Output {
                text: text.trim().into(),
                status,
            }),
            Err(_) => self
                .console
                .fail(&format!("{what} gave no exit status but {status:?}")),
        }
    }

    /// Runs `command`, which must succeed; returns what it printed, without the white space around.
    pub fn ok(&mut self, command: &str) -> Result<String> {
        self.ok_for(command, COMMAND)
    }

    /// Like [`Vm::ok`], for a command that may take up to `limit`.
    pub fn ok_for(&mut self, command: &str, limit: Duration) -> Result<String> {
        let Output { text, status } = self.run_for(command, limit)?;
        if status == 0 {
            return Ok(text);
        }
        self.console
            .fail(&format!("`{command}` ended with status {status}: {text}"))
    }

    /// Shuts the system down and waits until the machine is off.
    /// Returns all that it has said.
    pub fn power_off(mut self) -> Result<String> {
        self.console.send("systemctl poweroff\r")?;
        self.wait_for_power_off(COMMAND)
    }

    /// Waits until the machine says `text`; returns what it has said before.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        self.console.wait_for(text, text, BOOT)
    }

    /// Types a line and does not wait for what comes of it.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.console.send(&format!("{line}\r"))
    }

    /// Makes the shell at the prompt one for programs: no echo, no line editing, no pager, no
    /// colours, and no kernel messages in the middle of what commands print.
    fn prepare_shell(&mut self) -> Result<()> {
        self.console
            .send("export TERM=dumb PAGER=cat SYSTEMD_PAGER=; exec /bin/sh\r")?;
        // What is typed before the new shell's prompt can be lost when the old one resets the line.
        self.console.wait_for("prompt of /bin/sh", "# ", COMMAND)?;
        // On a terminal it would put several names on one line.
        self.ok("alias ls='ls -1'; stty -echo 2>/dev/null; dmesg -n emerg")?;
        Ok(())
    }
}
