//! A person at the serial line of a machine.

use std::io::{Read, Write, stdin, stdout};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::qemu::Vm;

/// Ctrl-A; with `x` after it, the machine is switched off, as in QEMU's own multiplexer.
const ESCAPE: u8 = 0x01;

impl Vm {
    /// Has this process' terminal type on the serial line until the machine is off or the person
    /// ends it. What the machine says is shown if it was started with an echo.
    pub fn hand_over(mut self) -> Result<()> {
        let _raw = RawTerminal::enter()?;
        let typed = read_stdin();
        let mut is_escaped = false;
        while self.console.is_open() {
            let bytes = match typed.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => bytes,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            for byte in bytes {
                match (is_escaped, byte) {
                    (true, b'x' | b'X') => return Ok(()),
                    (false, ESCAPE) => is_escaped = true,
                    _ => {
                        is_escaped = false;
                        self.console.send_bytes(&[byte])?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn read_stdin() -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stdin().read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The terminal in raw mode, as long as this lives.
struct RawTerminal(String);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let saved = stty(&["-g"])?;
        stty(&["raw", "-echo"])?;
        Ok(Self(saved))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The person can still type `reset`.
        let _ = stty(&[self.0.trim()]);
        // GRUB leaves the cursor in the middle of the screen.
        let _ = writeln!(stdout(), "\x1b[999H");
    }
}

fn stty(arguments: &[&str]) -> Result<String> {
    let output = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .output()
        .context("starting stty")?;
    ensure!(output.status.success(), "this needs a terminal");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
