//! Messages that programs look for: in the journal each has its `MESSAGE_ID` (systemd.journal-fields(7)) and fields
//! of its own. The format is that of <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>.
//!
//! Where no journald listens, there is the log alone.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use log::Level;

use super::logger::severity;

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a journald that does not read is waited for.
const WAIT: Duration = Duration::from_secs(1);
const IDENTIFIER: &str = "imgbased-helper";

/// A kind of message. Its id, a random number of 128 bits, stays the same in all versions.
pub struct Message {
    id: &'static str,
    level: Level,
}

impl Message {
    const fn new(id: &'static str, level: Level) -> Self {
        Self { id, level }
    }
}

/// A layer, or a kernel that is new in it, did not come up in any of its tries, and boots no more by itself.
/// `IMGBASED_LAYER`, `IMGBASED_KERNEL` where that was on trial, `IMGBASED_TRIES`.
pub const TRIAL_FAILED: Message = Message::new("95b35ad12987bd22ad0a5303205c8b31", Level::Warn);
/// A layer, or a kernel that is new in it, has come up for the first time, or on trial.
/// `IMGBASED_LAYER`, `IMGBASED_KERNEL`.
pub const CAME_UP: Message = Message::new("d698788fe780952843b51d1bebe630a8", Level::Info);
/// A hook has failed, or was ended. `IMGBASED_HOOK`, `IMGBASED_EVENT`.
pub const HOOK_FAILED: Message = Message::new("2d432aaa7c37aaad2419b5e96ba6c006", Level::Warn);
/// The end of what a hook said. `IMGBASED_HOOK`, `IMGBASED_EVENT`.
pub const HOOK_SAID: Message = Message::new("d8bfe5a1c6d0503107d96f44a5a02d4a", Level::Info);

/// Says something in the log and in the journal. Where the log is the journal, it is there once.
pub fn tell(message: &Message, text: &str, fields: &[(&str, &str)]) {
    if !(record(message, text, fields) && has_log()) {
        log::log!(message.level, "{text}");
    }
}

/// Says something in the journal alone. Returns whether that has it.
pub fn record(message: &Message, text: &str, fields: &[(&str, &str)]) -> bool {
    let sent = send(&entry(message, text, fields));
    if let Err(error) = &sent {
        log::debug!("{SOCKET}: {error}");
    }
    sent.is_ok()
}

fn send(entry: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(WAIT))?;
    socket.send_to(entry, SOCKET).map(drop)
}

/// Whether standard error, which has the log, leads to the journal (`JOURNAL_STREAM` in systemd.exec(5)).
fn has_log() -> bool {
    let journal = env::var("JOURNAL_STREAM").unwrap_or_default();
    let log = fs::metadata("/proc/self/fd/2");
    log.is_ok_and(|log| journal == format!("{}:{}", log.dev(), log.ino()))
}

/// All fields of an entry, as journald reads them. Those without a value are left out.
fn entry(message: &Message, text: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let priority = severity(message.level).to_string();
    let own = [
        ("MESSAGE", text),
        ("MESSAGE_ID", message.id),
        ("PRIORITY", &priority),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
    ];
    let mut entry = Vec::new();
    for (name, value) in own
        .iter()
        .chain(fields)
        .filter(|(_, value)| !value.is_empty())
    {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&Message; 4] = [&TRIAL_FAILED, &CAME_UP, &HOOK_FAILED, &HOOK_SAID];

    #[test]
    fn each_message_has_an_id_of_its_own_which_the_page_tells() {
        let page = include_str!("../admin/pages/imgbased-helper.8.md");
        for (at, message) in ALL.iter().enumerate() {
            let id = message.id;
            let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            assert!(id.len() == 32 && id.bytes().all(is_hex), "{id}");
            assert!(ALL[..at].iter().all(|other| other.id != id), "{id}");
            assert!(page.contains(&format!("| `{id}` |")), "{id}");
        }
    }

    #[test]
    fn fields_are_lines_and_those_of_several_lines_have_their_length() {
        let head = "MESSAGE=text\nMESSAGE_ID=d698788fe780952843b51d1bebe630a8\nPRIORITY=6\n\
                    SYSLOG_IDENTIFIER=imgbased-helper\n";
        for (fields, wanted) in [
            (&[][..], ""),
            (&[("A", "b"), ("C", "d=e")], "A=b\nC=d=e\n"),
            (&[("A", "")], ""),
            (&[("A", "b\nc")], "A\n\x03\0\0\0\0\0\0\0b\nc\n"),
            (
                &[("A", "b\nPRIORITY=0")],
                "A\n\x0c\0\0\0\0\0\0\0b\nPRIORITY=0\n",
            ),
        ] {
            let entry = entry(&CAME_UP, "text", fields);
            assert_eq!(
                String::from_utf8(entry).unwrap(),
                format!("{head}{wanted}"),
                "{fields:?}"
            );
        }
    }
}
