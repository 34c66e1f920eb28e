//! QEMU's monitor: one JSON object a line, in both directions.
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// For moving a gigabyte of memory to a file or back, in a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// Writes the memory and the devices of the machine whose monitor listens at `socket` to the file
/// `state`. The machine stands still then, and its disks are no longer written to.
pub fn save(socket: &Path, state: &Path) -> Result<()> {
    let mut monitor = Monitor::connect(socket)?;
    let target = json!({ "uri": format!("file:{}", state.display()) });
    monitor.run("migrate", &target)?;
    monitor.wait_for("query-migrate", "completed")
}

/// Ends the machine, when all that it has written is in the files of its disks.
pub fn quit(socket: &Path) -> Result<()> {
    Monitor::connect(socket)?.run("quit", &json!({})).map(drop)
}

/// Waits until a machine that was saved runs again. What is typed before is lost.
pub fn wait_until_restored(socket: &Path) -> Result<()> {
    Monitor::connect(socket)?.wait_for("query-status", "running")
}

/// Puts the qcow2 file `path` into the machine as a disk, at the PCI port `port`.
pub fn plug(socket: &Path, path: &Path, serial: &str, port: &str) -> Result<()> {
    let mut monitor = Monitor::connect(socket)?;
    let node = format!("disk-{serial}");
    let file = json!({ "driver": "file", "filename": path });
    monitor.run(
        "blockdev-add",
        &json!({ "driver": "qcow2", "node-name": node, "file": file }),
    )?;
    let device =
        json!({ "driver": "virtio-blk-pci", "drive": node, "serial": serial, "bus": port });
    monitor.run("device_add", &device)?;
    Ok(())
}

struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn connect(socket: &Path) -> Result<Self> {
        let deadline = Instant::now() + LIMIT;
        // QEMU makes the socket when it has started, and listens a moment later.
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => sleep(POLL),
                Err(error) => return Err(error).context("connecting to QEMU's monitor"),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut monitor = Self(BufReader::new(stream));
        monitor.receive("QMP")?;
        monitor.run("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Waits until the `status` in what `query` answers is the one that is wanted.
    fn wait_for(&mut self, query: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.run(query, &json!({}))?;
            let status = answer["status"].as_str().unwrap_or_default();
            if status == wanted {
                return Ok(());
            }
            ensure!(
                status != "failed" && Instant::now() < deadline,
                "waiting for {wanted:?}: {answer}"
            );
            sleep(POLL);
        }
    }

    /// Runs a command; returns what it answers.
    fn run(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}").context("writing to QEMU's monitor")?;
        self.receive("return").context(command.to_owned())
    }

    /// The value of `key` in the next message that is no event.
    fn receive(&mut self, key: &str) -> Result<Value> {
        loop {
            let mut line = String::new();
            self.0
                .read_line(&mut line)
                .context("reading from QEMU's monitor")?;
            let mut message: Value =
                serde_json::from_str(&line).with_context(|| format!("QEMU's monitor: {line:?}"))?;
            if message.get("event").is_none() {
                let value = message.get_mut(key).map(Value::take);
                return value.with_context(|| format!("QEMU's monitor: {line}"));
            }
        }
    }
}
