//! One change of a host: how it is made, and how a person would make it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::cmd::{Cmd, as_format, quote};
use super::files::replace;
use super::flush::{self, flush};

/// One change. Displayed as a command for a shell.
pub enum Action<'a> {
    Run(&'a Cmd),
    /// With the command that a dry run shows, if it is not to be the content itself.
    Write(&'a Path, &'a [u8], u32, Option<&'a Cmd>),
    Rewrite(&'a Path, &'a [u8]),
    Copy(&'a Path, &'a Path, u32),
    CreateDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    Flush(&'a Path),
}

impl Action<'_> {
    pub fn perform(&self) -> Result<()> {
        if !matches!(self, Self::Run(_)) {
            log::debug!("+ {self}");
        }
        let done = match self {
            // Its error says all that there is to say.
            Self::Run(cmd) => return cmd.run().map(drop),
            Self::Flush(dir) => return flush(dir),
            Self::Write(path, content, mode, _) => {
                replace(path, *mode, |file| file.write_all(content))
            }
            Self::Rewrite(path, content) => File::options()
                .write(true)
                .truncate(true)
                .open(path)
                .and_then(|mut file| file.write_all(content)),
            Self::Copy(from, to, mode) => File::open(from).and_then(|mut source| {
                replace(to, *mode, |file| io::copy(&mut source, file).map(drop))
            }),
            Self::CreateDir(path) => fs::create_dir_all(path),
            Self::Rename(from, to) => fs::rename(from, to),
            Self::Remove(path) => fs::remove_file(path),
        };
        done.with_context(|| match self {
            Self::Run(_) | Self::Flush(_) => self.to_string(),
            Self::Write(path, ..) | Self::Rewrite(path, _) => {
                format!("cannot write {}", path.display())
            }
            Self::Copy(from, to, _) => {
                format!("cannot copy {} to {}", from.display(), to.display())
            }
            Self::CreateDir(path) => format!("cannot create {}", path.display()),
            Self::Rename(path, _) => format!("cannot rename {}", path.display()),
            Self::Remove(path) => format!("cannot remove {}", path.display()),
        })
    }
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(cmd) | Self::Write(.., Some(cmd)) => f.write_str(&cmd.line()),
            Self::Write(path, content, ..) | Self::Rewrite(path, content) => {
                let path = quote(path.as_os_str());
                match as_document(content) {
                    Some(text) => write!(f, "cat > {path} <<'EOF'\n{text}EOF"),
                    None => write!(f, "printf '{}' > {path}", as_format(content)),
                }
            }
            Self::Copy(from, to, mode) => {
                let install = Cmd::new("install").arg("-m").arg(format!("{mode:04o}"));
                install.arg(from).arg(to).fmt(f)
            }
            Self::CreateDir(path) => Cmd::new("mkdir").arg("-p").arg(path).fmt(f),
            Self::Rename(from, to) => Cmd::new("mv").arg(from).arg(to).fmt(f),
            Self::Remove(path) => Cmd::new("rm").arg(path).fmt(f),
            Self::Flush(dir) => flush::command(dir).fmt(f),
        }
    }
}

/// Content that a here-document gives back as it is, up to a line `EOF`: lines of text.
fn as_document(content: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(content).ok()?;
    let is_text = |c: char| !c.is_control() || "\n\t".contains(c);
    let has_end = text.is_empty() || text.ends_with('\n');
    let is_plain = has_end && text.chars().all(is_text) && text.lines().all(|line| line != "EOF");
    is_plain.then_some(text)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_status_that_is_no_failure_does_not_end_a_shell() {
        let check = Cmd::new("e2fsck").arg("-fp").accept(&[0, 1, 2, 3]);
        let action = Action::Run(&check);
        assert_eq!(action.to_string(), "e2fsck -fp || [ $? -le 3 ]");
        let check = Cmd::new("e2fsck");
        assert_eq!(Action::Run(&check).to_string(), "e2fsck");
    }

    #[test]
    fn a_dry_run_shows_files_as_a_shell_writes_them() {
        let action = Action::Write(Path::new("/boot/a b"), b"one\n$two\n", 0o644, None);
        assert_eq!(
            action.to_string(),
            "cat > '/boot/a b' <<'EOF'\none\n$two\nEOF"
        );
        let action = Action::Rewrite(Path::new("/etc/fstab"), b"# caf\xe9 100 %\n/ x\n");
        assert_eq!(
            action.to_string(),
            "printf '# caf\\351 100 %%\n/ x\n' > /etc/fstab"
        );
    }

    #[test]
    fn a_shell_gives_each_content_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's a file");
        let all: Vec<u8> = (0..=255).collect();
        for content in [
            &b""[..],
            b"\n",
            b"one",
            b"one\n",
            b"one\n\n\n",
            b"\n\none\ttwo\n",
            b"a\nEOF\nb\n",
            b"EOF\n",
            b" EOF\nEOF \nXEOF\n",
            b"$HOME `id` \\ \\n \\101 \"' $(id)\n",
            b"it's 100 % and %s, \\n \\101",
            b"# caf\xc3\xa9\n",
            b"# caf\xe9\nUUID=1-2 / ext4 defaults 0 1\n",
            b"# caf\xe9\n\n",
            b"-n -e %b\xff",
            b"--\xff",
            b"\xff7\x001",
            b"dos\r\n",
            b"\x1b[2J\n",
            b"nul\0\n",
            &all,
            &[b'#'; 1024],
        ] {
            for action in [
                Action::Write(&path, content, 0o644, None),
                Action::Rewrite(&path, content),
            ] {
                for shell in ["sh", "bash"] {
                    let ran = Command::new(shell)
                        .args(["-e", "-c", &action.to_string()])
                        .output()
                        .unwrap();
                    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
                    let written = fs::read(&path).unwrap();
                    assert_eq!(written, content, "{shell}: {action}");
                }
            }
        }
    }
}
