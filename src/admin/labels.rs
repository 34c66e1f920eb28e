//! The `SELinux` labels of what is put into a new layer: those that the policy of its image asks for (selinux(8)). The
//! policy is asked by the image's own matchpathcon(8), which runs shut in.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::asked::ask;
use super::packages::has_program;
use crate::sys::interrupt::Interrupt;
use crate::sys::transaction::Transaction;
use crate::tree::{Below, Dir, Kind, READ_MAX, Time, escaped, walk};

/// The attribute with the label of a file. Its value ends with a zero.
const LABEL: &str = "security.selinux";
/// Which policy a root has.
const CONFIG: &str = "etc/selinux/config";
/// What asks for the labels of many paths, and what knows them.
const PROGRAMS: [&str; 2] = ["/usr/bin/xargs", "/usr/sbin/matchpathcon"];
const LINE: &str =
    "exec /usr/bin/xargs -0 /usr/sbin/matchpathcon -n -N </run/question >/run/answer";
/// Of so many files the label is looked at.
const FILES_MAX: usize = 100_000;
/// The longest tick of a kernel's clock, twice: the times of files are not younger than that.
const TICK: Duration = Duration::from_millis(20);

/// A file that was put into the layer, or changed there.
#[derive(Debug, PartialEq)]
struct File {
    path: PathBuf,
    /// Its label.
    has: Option<Vec<u8>>,
    /// The label that it gets.
    gets: Option<Vec<u8>>,
}

/// This moment, as the times of files tell it.
pub fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().saturating_sub(TICK);
    (
        i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        now.subsec_nanos(),
    )
}

/// Gives what was put into the layer that is mounted at `root`, or was changed there, since a moment the labels that its
/// policy asks for, if it has one that tells. Where a person has given a file another label than the policy of the host
/// asks for, that stays. What fails is a warning.
pub fn set(tx: &mut Transaction, root: &Path, since: Time) -> Result<()> {
    let done = tx.scope(|tx| try_set(tx, root, since));
    tx.interrupt().check()?;
    if let Err(error) = done {
        warn_of_all(&error);
    }
    Ok(())
}

fn warn_of_all(error: &anyhow::Error) {
    log::warn!("files of the new layer keep the SELinux labels that they have: {error:#}");
}

fn try_set(tx: &mut Transaction, root: &Path, since: Time) -> Result<()> {
    if !has_policy(root)? {
        return Ok(());
    }
    let (mut files, mut left_out) = (Vec::new(), 0);
    tx.work(
        &"# what was put into the new layer is looked for",
        |interrupt| {
            (files, left_out) = changed(root, since, interrupt)?;
            Ok(())
        },
    )?;
    if let Err(error) = choose(tx, root, &mut files)? {
        warn_of_all(&error);
        return Ok(());
    }
    files.retain(|file| file.gets.is_some());
    tx.work(
        &"# it gets the labels that its policy asks for",
        |interrupt| {
            let (failed, why) = put(root, &files, interrupt)?;
            if let Some(why) = why {
                left_out += failed;
                log::warn!("a file of the new layer gets no SELinux label: {why:#}");
            }
            Ok(())
        },
    )?;
    if left_out > 0 {
        log::warn!(
            "files of the new layer without a SELinux label: {left_out}; `restorecon -R /` in it gives them theirs"
        );
    }
    Ok(())
}

/// Whether a root has a policy that labels its files, and programs that tell how.
fn has_policy(root: &Path) -> Result<bool> {
    let dir = Dir::root(root)?;
    let failed = || format!("cannot read /{CONFIG}");
    let config = dir.resolve(Path::new(CONFIG)).with_context(failed)?;
    let Some(config) = config.filter(|config| config.stat.kind == Kind::File) else {
        return Ok(false);
    };
    let config = config.read(READ_MAX).with_context(failed)?;
    let Some(policy) = policy(&String::from_utf8_lossy(&config)) else {
        return Ok(false);
    };
    let contexts = format!("etc/selinux/{policy}/contexts/files/file_contexts");
    let contexts = dir.resolve(Path::new(&contexts)).with_context(failed)?;
    let is_file = contexts.is_some_and(|contexts| contexts.stat.kind == Kind::File);
    Ok(is_file && PROGRAMS.iter().all(|program| has_program(root, program)))
}

/// The name of the policy that is used (`selinux_config(5)`).
fn policy(config: &str) -> Option<String> {
    let value = |name: &str| {
        let mut lines = config.lines().rev();
        let found = lines.find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
        found.map(|value| value.trim().to_owned())
    };
    let is_used = value("SELINUX").is_none_or(|mode| mode != "disabled");
    let is_name = |name: &String| !name.is_empty() && !name.contains('/') && name != "..";
    value("SELINUXTYPE").filter(|name| is_used && is_name(name))
}

/// What was changed since a moment, and how many more there are that have no label.
fn changed(root: &Path, since: Time, interrupt: &Interrupt) -> Result<(Vec<File>, usize)> {
    let (mut files, mut left_out) = (Vec::new(), 0);
    walk(&[Some(Dir::root(root)?)], None, &mut |visit| {
        interrupt.check()?;
        if let [Some(place)] = visit.places
            && place.stat.ctime >= since
            && let Some(node) = place.node()?
        {
            let has = node.xattrs()?.remove(OsStr::new(LABEL));
            if files.len() < FILES_MAX {
                let path = visit.path.to_owned();
                files.push(File {
                    path,
                    has: has.map(without_zero),
                    gets: None,
                });
            } else {
                left_out += usize::from(has.is_none());
            }
        }
        Ok(Below::Visit)
    })?;
    Ok((files, left_out))
}

fn without_zero(mut label: Vec<u8>) -> Vec<u8> {
    if label.last() == Some(&0) {
        label.pop();
    }
    label
}

/// Decides which label each of these gets. The inner error is what a policy says.
fn choose(tx: &mut Transaction, root: &Path, files: &mut [File]) -> Result<Result<()>> {
    let mut all: Vec<&mut File> = files.iter_mut().collect();
    match asked(tx, root, &all)? {
        Ok(image) => {
            for (file, label) in all.iter_mut().zip(image) {
                file.gets = label.filter(|label| is_wanted(file, label));
            }
        }
        Err(error) => return Ok(Err(error)),
    }
    // Only what has another label may have got it from a person.
    all.retain(|file| file.has.is_some() && file.gets.is_some());
    let here = Path::new("/");
    let mut host = vec![None; all.len()];
    if !all.is_empty() && has_policy(here)? {
        match asked(tx, here, &all)? {
            Ok(labels) => host = labels,
            Err(error) => log::debug!("the policy of the host is not known: {error:#}"),
        }
    }
    for (file, host) in all.into_iter().zip(host) {
        if !is_of(file, host.as_deref()) {
            file.gets = None;
        }
    }
    Ok(Ok(()))
}

/// Whether a file has no label, or one of another type than this. Who has made it says nothing.
fn is_wanted(file: &File, label: &[u8]) -> bool {
    let has = file.has.as_deref();
    has.is_none_or(|has| type_of(has) != type_of(label))
}

/// Whether a file has the label that a policy asks for.
fn is_of(file: &File, label: Option<&[u8]>) -> bool {
    let has = file.has.as_deref();
    has.map(type_of) == label.map(type_of)
}

/// The third part of a label, which is what a policy decides by.
fn type_of(label: &[u8]) -> &[u8] {
    let mut parts = label.split(|byte| *byte == b':');
    parts.nth(2).unwrap_or_default()
}

/// What the policy of a root asks for at the paths of these. The inner error is what its programs say.
#[allow(
    clippy::type_complexity,
    reason = "it is asked twice, and taken apart at once"
)]
fn asked(
    tx: &mut Transaction,
    root: &Path,
    files: &[&mut File],
) -> Result<Result<Vec<Option<Vec<u8>>>>> {
    let mut question = Vec::new();
    for file in files {
        question.push(b'/');
        question.extend(file.path.as_os_str().as_bytes());
        question.push(0);
    }
    if files.is_empty() {
        return Ok(Ok(Vec::new()));
    }
    let answer = ask(tx, root, LINE, &question)?;
    Ok(answer.and_then(|answer| labels(&answer, files.len())))
}

/// The labels of so many paths, of a line for each. Refuses another number of lines.
fn labels(answer: &[u8], count: usize) -> Result<Vec<Option<Vec<u8>>>> {
    let lines = answer.strip_suffix(b"\n").unwrap_or_default();
    let label = |line: &[u8]| {
        // That of a path that is to have none is `<<none>>`.
        let is_one = line.iter().all(u8::is_ascii_graphic) && !type_of(line).is_empty();
        is_one.then(|| line.to_owned())
    };
    let labels: Vec<_> = lines.split(|byte| *byte == b'\n').map(label).collect();
    ensure!(
        labels.len() == count,
        "matchpathcon(8) tells the labels of {} paths of {count}",
        labels.len()
    );
    Ok(labels)
}

/// Sets the labels. Returns how many files did not take theirs, and why the first of them did not.
fn put(
    root: &Path,
    files: &[File],
    interrupt: &Interrupt,
) -> Result<(usize, Option<anyhow::Error>)> {
    let root = Dir::root(root)?;
    let (mut failed, mut why) = (0, None);
    for file in files {
        interrupt.check()?;
        if let Err(error) = put_one(&root, file) {
            failed += 1;
            why.get_or_insert(error);
        }
    }
    Ok((failed, why))
}

fn put_one(root: &Dir, file: &File) -> Result<()> {
    let failed = || format!("/{}", escaped(&file.path));
    let above = file.path.parent().unwrap_or(Path::new(""));
    let dir = root.descend(above).with_context(failed)?;
    let (Some(dir), Some(name), Some(label)) = (dir, file.path.file_name(), &file.gets) else {
        return Ok(());
    };
    let set = || -> io::Result<()> {
        let node = dir.node(name)?;
        let (mut meta, locks) = (node.meta()?, node.locks()?);
        let label = [label.as_slice(), b"\0"].concat();
        meta.xattrs.insert(LABEL.into(), label);
        dir.set_meta(name, &meta, None)?;
        // What is immutable loses that.
        if locks.is_empty() {
            return Ok(());
        }
        dir.node(name)?.set_locks(locks)
    };
    set().with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_told_by_its_name_where_one_is_used() {
        for (config, wanted) in [
            (
                "SELINUX=enforcing\nSELINUXTYPE=targeted\n",
                Some("targeted"),
            ),
            ("# SELINUXTYPE=x\nSELINUXTYPE= mls \n", Some("mls")),
            ("SELINUX=permissive\nSELINUXTYPE=default", Some("default")),
            ("SELINUX=disabled\nSELINUXTYPE=targeted\n", None),
            ("SELINUX=enforcing\n", None),
            ("SELINUXTYPE=\n", None),
            ("SELINUXTYPE=../x\n", None),
            ("SELINUXTYPE=..\n", None),
            ("", None),
        ] {
            assert_eq!(policy(config).as_deref(), wanted, "{config:?}");
        }
    }

    #[test]
    fn each_path_has_a_line_with_its_label() {
        let some = |label: &str| Some(label.as_bytes().to_owned());
        for (answer, count, wanted) in [
            ("s:o:etc_t:s0\n", 1, Some(vec![some("s:o:etc_t:s0")])),
            (
                "s:o:etc_t\n<<none>>\ns:o:a_t:s0-s0:c0.c3\n",
                3,
                Some(vec![some("s:o:etc_t"), None, some("s:o:a_t:s0-s0:c0.c3")]),
            ),
            ("no label\n\u{1b}:o:x_t\n", 2, Some(vec![None, None])),
            ("s:o:etc_t:s0\n", 2, None),
            ("s:o:etc_t:s0\ns:o:etc_t:s0\n", 1, None),
            ("", 2, None),
        ] {
            let found = labels(answer.as_bytes(), count).ok();
            assert_eq!(found, wanted, "{answer:?} {count}");
        }
    }

    #[test]
    fn a_label_that_a_person_has_given_stays() {
        // That of the file, what the policies of the image and of the host ask for, and whether it gets the image's.
        for (has, image, host, wanted) in [
            (None, "s:o:new_t:s0", None, true),
            (None, "s:o:new_t:s0", Some("s:o:old_t:s0"), true),
            (
                Some("s:o:old_t:s0"),
                "s:o:new_t:s0",
                Some("s:o:old_t:s0"),
                true,
            ),
            (
                Some("root:o:old_t:s0"),
                "s:o:new_t:s0",
                Some("s:o:old_t:s0"),
                true,
            ),
            (
                Some("s:o:own_t:s0"),
                "s:o:new_t:s0",
                Some("s:o:old_t:s0"),
                false,
            ),
            (Some("s:o:own_t:s0"), "s:o:new_t:s0", None, false),
            (
                Some("root:o:new_t:s0"),
                "s:o:new_t:s0",
                Some("s:o:new_t:s0"),
                false,
            ),
        ] {
            let bytes = |label: &str| label.as_bytes().to_owned();
            let file = File {
                path: "etc/x".into(),
                has: has.map(bytes),
                gets: None,
            };
            let of_host = host.map(str::as_bytes);
            let is_set =
                is_wanted(&file, image.as_bytes()) && (file.has.is_none() || is_of(&file, of_host));
            assert_eq!(is_set, wanted, "{has:?} {image} {host:?}");
        }
        assert_eq!(without_zero(b"s:o:t\0".to_vec()), b"s:o:t");
        assert_eq!(without_zero(b"s:o:t".to_vec()), b"s:o:t");
    }
}
