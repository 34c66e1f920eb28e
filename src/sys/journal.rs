//! Messages that programs look for: in the journal each has its `MESSAGE_ID` (systemd.journal-fields(7)) and fields
//! of its own. The format is that of <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>. `imgbased.catalog` tells people what
//! each means, and what to do: `journalctl --catalog` shows it.
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
/// `IMGBASED_LAYER`, `IMGBASED_BASE`, `IMGBASED_KERNEL` where that was on trial, `IMGBASED_TRIES`.
pub const TRIAL_FAILED: Message = Message::new("95b35ad12987bd22ad0a5303205c8b31", Level::Warn);
/// A layer, or a kernel that is new in it, has come up for the first time, or on trial.
/// `IMGBASED_LAYER`, `IMGBASED_BASE`, `IMGBASED_KERNEL`.
pub const CAME_UP: Message = Message::new("d698788fe780952843b51d1bebe630a8", Level::Info);
/// A layer was made. `IMGBASED_LAYER`, `IMGBASED_BASE`.
pub const LAYER_ADDED: Message = Message::new("f856e2aeeed16b993c842835962ee9b5", Level::Info);
/// A layer was removed. `IMGBASED_LAYER`, `IMGBASED_BASE`.
pub const LAYER_REMOVED: Message = Message::new("131a058f28f25720e8931f6b19fad41f", Level::Info);
/// A base was made. `IMGBASED_BASE`.
pub const BASE_ADDED: Message = Message::new("972311c2a152cbaef8d67c0e18cc66c1", Level::Info);
/// A base was removed. `IMGBASED_BASE`.
pub const BASE_REMOVED: Message = Message::new("b3e837bf7056445c83cb684533a98bf0", Level::Info);
/// An update was made, and waits for a restart. `IMGBASED_LAYER`, `IMGBASED_BASE`.
pub const UPDATE_WAITS: Message = Message::new("eecef1e0956cfd374901735dda830ca4", Level::Info);
/// A rollback has chosen what boots from now on. `IMGBASED_LAYER`, `IMGBASED_BASE`.
pub const WENT_BACK: Message = Message::new("8a8391c4a0f7d4bae9b0fbc4aa26c06a", Level::Info);
/// A person has chosen what boots from now on, or is tried for that. `IMGBASED_LAYER`, `IMGBASED_BASE`, and
/// `IMGBASED_KERNEL` where that was named.
pub const DEFAULT_CHOSEN: Message = Message::new("12e9601a2d6a558f74ea6f06860af0e6", Level::Info);
/// The layers mount a volume. `IMGBASED_VOLUME`, `IMGBASED_PATH`.
pub const VOLUME_ADDED: Message = Message::new("57f280385b849995481f288f99fad9eb", Level::Info);
/// The layers mount a volume no more. `IMGBASED_VOLUME`, `IMGBASED_PATH`.
pub const VOLUME_REMOVED: Message = Message::new("4ddd9a310d983322cc06e0be71993252", Level::Info);
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

    /// All messages that there are: a number in this file that is not here is found below.
    const ALL: [&Message; 13] = [
        &TRIAL_FAILED,
        &CAME_UP,
        &LAYER_ADDED,
        &LAYER_REMOVED,
        &BASE_ADDED,
        &BASE_REMOVED,
        &UPDATE_WAITS,
        &WENT_BACK,
        &DEFAULT_CHOSEN,
        &VOLUME_ADDED,
        &VOLUME_REMOVED,
        &HOOK_FAILED,
        &HOOK_SAID,
    ];
    const CATALOG: &str = include_str!("imgbased.catalog");

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

    /// The entries of the catalog, each with its id and its lines.
    fn entries() -> Vec<(&'static str, Vec<&'static str>)> {
        let entries = CATALOG.split("\n-- ").skip(1);
        let entries = entries.map(|entry| entry.split_once('\n').unwrap());
        entries
            .map(|(id, text)| (id, text.lines().collect()))
            .collect()
    }

    #[test]
    fn the_catalog_explains_each_message_and_no_other() {
        let source = include_str!("journal.rs");
        let constants = source.lines().filter(|line| line.starts_with("pub const "));
        assert_eq!(constants.count(), ALL.len());
        let mut explained: Vec<&str> = entries().iter().map(|(id, _)| *id).collect();
        let mut known: Vec<&str> = ALL.iter().map(|message| message.id).collect();
        explained.sort_unstable();
        known.sort_unstable();
        assert_eq!(explained, known);
        for (id, lines) in entries() {
            let (head, body) =
                lines.split_at(lines.iter().position(|line| line.is_empty()).unwrap());
            let keys: Vec<&str> = head
                .iter()
                .filter_map(|line| line.split_once(": "))
                .map(|(key, _)| key)
                .collect();
            assert_eq!(keys, ["Subject", "Defined-By", "Documentation"], "{id}");
            assert!(body.iter().any(|line| !line.is_empty()), "{id}");
            assert!(lines.iter().all(|line| line.len() <= 100), "{id}");
        }
    }

    #[test]
    fn the_catalog_names_fields_that_the_messages_have() {
        let source = include_str!("journal.rs");
        for (id, lines) in entries() {
            // The comment above the message tells its fields.
            let (above, _) = source.split_once(&format!("(\"{id}\"")).unwrap();
            let comment = above.rsplit(";\n").next().unwrap();
            let text = lines.join("\n");
            let fields: Vec<&str> = text.split('@').skip(1).step_by(2).collect();
            for field in fields {
                assert!(comment.contains(&format!("`{field}`")), "{id}: {field}");
            }
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
