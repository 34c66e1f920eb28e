//! imgbased.conf: where a host takes its images from, and how many stay. Files and drop-ins are found as those of systemd.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::fetch::{Fetcher, Patience};
use super::oci::reference::Reference;
use super::url::Url;
use crate::sys::files::read_if_there;
use crate::sys::interrupt::Interrupt;

/// The directories of the configuration, the most important first. All are below the root of the host.
pub const DIRECTORIES: [&str; 3] = ["etc/imgbased", "run/imgbased", "usr/lib/imgbased"];
const FILE: &str = "imgbased.conf";
const DROP_INS: &str = "imgbased.conf.d";
/// Where it is kept what was fetched.
pub const SPOOL: &str = "var/cache/imgbased";

/// What is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// The directory with the images.
    pub path: Option<Url>,
    /// An image in layers, which is there instead of that.
    pub image: Option<Reference>,
    /// What the names of images look like; see [`super::pattern::Pattern`].
    pub patterns: Vec<String>,
    /// No image with a lower version is taken.
    pub least: Option<String>,
    /// Whether a list has to have a signature.
    pub verify: bool,
    pub proxy: Option<String>,
    /// Where it is kept what was fetched.
    pub spool: PathBuf,
    /// In seconds: how long nothing may come before it is tried again.
    pub stall: u32,
    /// How many bases stay when old ones are removed; no number is the default of who removes them.
    pub bases: Option<usize>,
}

/// A key with its section, and what takes its value; an empty one is that of the beginning.
type Key = (
    &'static str,
    &'static str,
    fn(&mut Conf, &str) -> Result<()>,
);

/// The fewest bases that stay: what runs, and what it falls back to.
const BASES_LEAST: usize = 2;

const KEYS: [Key; 8] = [
    ("Source", "Path", |conf, value| {
        (conf.path, conf.image) = if Reference::is_meant(value) {
            (None, Some(Reference::parse(value)?))
        } else {
            (Some(Url::parse(value)?.as_directory()), None)
        };
        Ok(())
    }),
    ("Source", "MatchPattern", |conf, value| {
        let patterns = value.split_ascii_whitespace().map(str::to_owned);
        conf.patterns.extend(patterns);
        Ok(())
    }),
    ("Source", "Proxy", |conf, value| {
        ensure!(
            !value.chars().any(char::is_control),
            "it has control characters"
        );
        conf.proxy = Some(value.to_owned());
        Ok(())
    }),
    ("Source", "StallSec", |conf, value| {
        let seconds = value.trim_end_matches('s').parse().ok();
        let seconds = seconds.filter(|seconds| (1..=3600).contains(seconds));
        conf.stall = seconds.context("a number of seconds up to 3600 is needed")?;
        Ok(())
    }),
    ("Source", "Spool", |conf, value| {
        ensure!(value.starts_with('/'), "an absolute path is needed");
        conf.spool = value.into();
        Ok(())
    }),
    ("Transfer", "MinVersion", |conf, value| {
        conf.least = Some(value.to_owned());
        Ok(())
    }),
    ("Transfer", "Verify", |conf, value| {
        conf.verify = boolean(value)?;
        Ok(())
    }),
    ("Target", "InstancesMax", |conf, value| {
        let number = value.parse().ok().filter(|number| *number >= BASES_LEAST);
        conf.bases = Some(number.context("a number from 2 on is needed")?);
        Ok(())
    }),
];

impl Conf {
    /// What counts where nothing is configured, on a host at `root`.
    fn of_nothing(root: &Path) -> Self {
        Self {
            path: None,
            image: None,
            patterns: Vec::new(),
            least: None,
            verify: true,
            proxy: None,
            spool: root.join(SPOOL),
            stall: 60,
            bases: None,
        }
    }

    /// What fetches files as it says.
    pub fn fetcher(&self, interrupt: &Interrupt) -> Fetcher {
        Fetcher {
            patience: Patience {
                stall: self.stall,
                ..Patience::default()
            },
            proxy: self.proxy.clone(),
            interrupt: interrupt.clone(),
            login: None,
        }
    }

    /// Reads the configuration of the host at `root`.
    ///
    /// Fails where a value is wrong; a key that is not known is told, and does nothing.
    pub fn load(root: &Path) -> Result<Self> {
        let mut conf = Self::of_nothing(root);
        for file in files(root)? {
            let text = read_if_there(&file)?.unwrap_or_default();
            let shown = file.display().to_string();
            let text = String::from_utf8(text).map_err(|_| anyhow!("{shown} is no text"))?;
            for unknown in conf.read(&text, &shown, root)? {
                log::warn!("{unknown}");
            }
        }
        Ok(conf)
    }

    /// Takes what a file says, which people call `name`. Returns what it says that is not known.
    fn read(&mut self, text: &str, name: &str, root: &Path) -> Result<Vec<String>> {
        let mut unknown = Vec::new();
        let mut section = String::new();
        for (number, line) in lines(text) {
            let at = || format!("{name}:{number}");
            if let Some(header) = line.strip_prefix('[') {
                let header = header.strip_suffix(']');
                header
                    .with_context(|| format!("{}: the section has no end", at()))?
                    .clone_into(&mut section);
                if !KEYS.iter().any(|(of, ..)| *of == section) {
                    unknown.push(format!("{}: the section [{section}] is not known", at()));
                }
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .with_context(|| format!("{}: KEY=VALUE is needed", at()))?;
            let (key, value) = (key.trim(), value.trim());
            let known = KEYS
                .iter()
                .find(|(of, name, _)| *of == section && *name == key);
            let Some((_, _, take)) = known else {
                // Those of a section that is not known were told with that.
                if section.is_empty() || KEYS.iter().any(|(of, ..)| *of == section) {
                    unknown.push(format!(
                        "{}: the key {key} of [{section}] is not known",
                        at()
                    ));
                }
                continue;
            };
            if value.is_empty() {
                self.reset(key, root);
                continue;
            }
            // An address can hold a password.
            let shown = if ["Path", "Proxy"].contains(&key) {
                ""
            } else {
                value
            };
            take(self, value).with_context(|| format!("{}: {key}={shown}", at()))?;
        }
        Ok(unknown)
    }

    /// An empty value takes back what was said before.
    fn reset(&mut self, key: &str, root: &Path) {
        let nothing = Self::of_nothing(root);
        match key {
            "Path" => (self.path, self.image) = (nothing.path, nothing.image),
            "MatchPattern" => self.patterns = nothing.patterns,
            "Proxy" => self.proxy = nothing.proxy,
            "StallSec" => self.stall = nothing.stall,
            "Spool" => self.spool = nothing.spool,
            "MinVersion" => self.least = nothing.least,
            "InstancesMax" => self.bases = nothing.bases,
            _ => self.verify = nothing.verify,
        }
    }
}

/// The lines that say something, with their numbers. A line that ends in a backslash goes on in the next one.
fn lines(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with(['#', ';']) || (line.is_empty() && !goes_on) {
            continue;
        }
        let (text, more) = match line.strip_suffix('\\') {
            Some(text) => (text.trim_end(), true),
            None => (line, false),
        };
        match found.last_mut() {
            Some((_, begun)) if goes_on => *begun = format!("{begun} {text}"),
            _ => found.push((at + 1, text.to_owned())),
        }
        goes_on = more;
    }
    found
}

fn boolean(value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Ok(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Ok(false),
        _ => bail!("yes or no is needed"),
    }
}

/// The files that count, in the order in which they are read: the most important main file, then the drop-ins by
/// name.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mains = DIRECTORIES.map(|dir| root.join(dir).join(FILE));
    let main = mains.into_iter().find(|path| path.exists());
    let drop_ins = merged(root, DROP_INS, |name| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "conf")
    })?;
    Ok(main.into_iter().chain(drop_ins).collect())
}

/// The files of a directory of each of [`DIRECTORIES`], by name. One that is more important shadows another of its
/// name, and a link to /dev/null turns that off.
pub fn merged(root: &Path, dir: &str, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = BTreeMap::new();
    for directory in DIRECTORIES {
        let dir = root.join(directory).join(dir);
        let listed = match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            listed => listed.with_context(|| format!("cannot read {}", dir.display()))?,
        };
        for entry in listed {
            let name = entry?.file_name();
            if is_wanted(&name.to_string_lossy()) {
                let path = dir.join(&name);
                found.entry(name).or_insert(path);
            }
        }
    }
    let is_on =
        |path: &PathBuf| fs::read_link(path).ok().as_deref() != Some(Path::new("/dev/null"));
    Ok(found.into_values().filter(is_on).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read(text: &str) -> Result<(Conf, Vec<String>)> {
        let mut conf = Conf::of_nothing(Path::new("/"));
        let unknown = conf.read(text, "x.conf", Path::new("/"))?;
        Ok((conf, unknown))
    }

    #[test]
    fn what_is_configured_is_read() {
        let (conf, unknown) = read(
            "# where from\n[Source]\nPath = https://example.org/images\nMatchPattern=a-@v.raw \\\n  a-@v.raw.zst\n\
             MatchPattern=a-@v.tar\nProxy=http://proxy:3128\nStallSec=30s\nSpool=/srv/spool\n; more\n[Transfer]\n\
             MinVersion=3\nVerify=off\n[Target]\nInstancesMax=3\n",
        )
        .unwrap();
        assert_eq!(unknown, Vec::<String>::new());
        let path = conf.path.as_ref().map(ToString::to_string);
        assert_eq!(path.as_deref(), Some("https://example.org/images/"));
        assert_eq!(conf.patterns, ["a-@v.raw", "a-@v.raw.zst", "a-@v.tar"]);
        assert_eq!((conf.verify, conf.stall, conf.bases), (false, 30, Some(3)));
        assert_eq!(conf.spool, Path::new("/srv/spool"));
        assert_eq!(conf.proxy.as_deref(), Some("http://proxy:3128"));
        let all = "[Source]\nPath=\nMatchPattern=\nProxy=\nStallSec=\nSpool=\n[Transfer]\nMinVersion=\nVerify=\n\
            [Target]\nInstancesMax=\n";
        let mut conf = conf;
        conf.read(all, "y.conf", Path::new("/")).unwrap();
        assert_eq!(conf, Conf::of_nothing(Path::new("/")));
    }

    #[test]
    fn a_path_can_be_an_image_in_layers() {
        for (text, path, image) in [
            (
                "Path=docker://h:5000/a/b:v1",
                None,
                Some("docker://h:5000/a/b:v1"),
            ),
            (
                "Path=oci:/srv/x\nPath=http://h/d",
                Some("http://h/d/"),
                None,
            ),
            ("Path=http://h/d\nPath=oci:/srv/x", None, Some("oci:/srv/x")),
            ("Path=oci:/srv/x\nPath=", None, None),
        ] {
            let (conf, _) = read(&format!("[Source]\n{text}\n")).unwrap();
            let shown = (
                conf.path.map(|it| it.to_string()),
                conf.image.map(|it| it.to_string()),
            );
            assert_eq!(
                shown,
                (path.map(str::to_owned), image.map(str::to_owned)),
                "{text}"
            );
        }
        assert!(read("[Source]\nPath=docker://\n").is_err());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, why) in [
            ("[Source\n", "x.conf:1: the section has no end"),
            ("[Source]\nPath\n", "x.conf:2: KEY=VALUE is needed"),
            ("[Source]\n\nPath=ftp://x/\n", "x.conf:3: Path=: "),
            ("[Source]\nStallSec=0\n", "x.conf:2: StallSec=0"),
            ("[Source]\nStallSec=soon\n", "x.conf:2: StallSec=soon"),
            ("[Source]\nSpool=here\n", "x.conf:2: Spool=here"),
            ("[Transfer]\nVerify=perhaps\n", "x.conf:2: Verify=perhaps"),
            ("[Target]\nInstancesMax=1\n", "x.conf:2: InstancesMax=1"),
            ("[Target]\nInstancesMax=-3\n", "x.conf:2: InstancesMax=-3"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(error.starts_with(why), "{text}: {error}");
        }
        for text in [
            "[Source]\nPath=https://host:secret#@images.example.org/\n",
            "[Source]\nProxy=http://host:secret\u{1}@proxy/\n",
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            assert!(!error.contains("secret"), "{error}");
        }
        let (_, unknown) =
            read("Early=1\n[Source]\nFoo=1\n[Feature]\nBar=2\n[Transfer]\nVerify=1\n").unwrap();
        assert_eq!(
            unknown,
            [
                "x.conf:1: the key Early of [] is not known",
                "x.conf:3: the key Foo of [Source] is not known",
                "x.conf:4: the section [Feature] is not known"
            ]
        );
    }

    #[test]
    fn files_and_drop_ins_count_as_those_of_systemd() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (path, text) in [
            (
                "usr/lib/imgbased/imgbased.conf",
                "[Source]\nStallSec=1\nMatchPattern=vendor-@v\n",
            ),
            (
                "usr/lib/imgbased/imgbased.conf.d/10-a.conf",
                "[Source]\nMatchPattern=a-@v\n",
            ),
            (
                "usr/lib/imgbased/imgbased.conf.d/20-b.conf",
                "[Source]\nMatchPattern=b-@v\n",
            ),
            (
                "usr/lib/imgbased/imgbased.conf.d/30-c.conf",
                "[Source]\nMatchPattern=c-@v\n",
            ),
            ("usr/lib/imgbased/imgbased.conf.d/README", "odd"),
            (
                "etc/imgbased/imgbased.conf.d/20-b.conf",
                "[Source]\nMatchPattern=of-etc-@v\n",
            ),
            (
                "run/imgbased/imgbased.conf.d/20-b.conf",
                "[Source]\nMatchPattern=of-run-@v\n",
            ),
            (
                "run/imgbased/imgbased.conf.d/40-d.conf",
                "[Source]\nMatchPattern=d-@v\n",
            ),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink(
            "/dev/null",
            root.join("etc/imgbased/imgbased.conf.d/30-c.conf"),
        )
        .unwrap();
        let conf = Conf::load(root).unwrap();
        assert_eq!(conf.patterns, ["vendor-@v", "a-@v", "of-etc-@v", "d-@v"]);
        assert_eq!(conf.stall, 1);
        // A main file of the host is there instead of that of the vendor.
        fs::write(root.join("etc/imgbased/imgbased.conf"), "").unwrap();
        let conf = Conf::load(root).unwrap();
        assert_eq!(conf.patterns, ["a-@v", "of-etc-@v", "d-@v"]);
        assert_eq!(conf.stall, 60);
        let nothing = tempfile::tempdir().unwrap();
        let conf = Conf::load(nothing.path()).unwrap();
        assert_eq!(conf, Conf::of_nothing(nothing.path()));
    }
}
