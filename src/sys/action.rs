//! One change of a host: how it is made, and how a person would make it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::cmd::{Cmd, quote};
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
                let text = String::from_utf8_lossy(content);
                let (path, text) = (quote(path.as_os_str()), text.trim_end_matches('\n'));
                write!(f, "cat > {path} <<'EOF'\n{text}\nEOF")
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

#[cfg(test)]
mod tests {
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
    }
}
