//! Paths that a person names: to be taken from another root, or to be carried to layers of newer bases. No file is
//! looked at.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use glob::{MatchOptions, Pattern};

/// What is of the image or of the machine, and never of a layer, but for [`OF_LAYER`].
const NEVER: [&str; 13] = [
    "bin", "boot", "dev", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "tmp",
    "usr",
];
const OF_LAYER: &str = "usr/local";
/// What makes a pattern of a name.
const WILD: [char; 3] = ['*', '?', '['];

/// A path from the root, without the slash there. Refuses one that is not absolute, or leads up.
pub fn from_root(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    ensure!(path.is_absolute(), "{shown} does not begin with a slash");
    let mut below = PathBuf::new();
    for component in path.components().skip(1) {
        match component {
            Component::Normal(name) => below.push(name),
            _ => bail!("{shown} has `..` in it"),
        }
    }
    ensure!(below.iter().next().is_some(), "{shown} is everything");
    Ok(below)
}

/// A path below /etc, from the root. Refuses any other one.
pub fn below_etc(path: &Path) -> Result<PathBuf> {
    let below = from_root(path)?;
    ensure!(
        below.starts_with("etc") && below.iter().nth(1).is_some(),
        "{} is not below /etc, and only there a path can become as in the base; `imgbased-helper persist pull` takes what \
         the layer before had",
        path.display()
    );
    Ok(below)
}

/// A path of which a layer can have its own, from the root. Refuses any other one.
pub fn of_layer(path: &Path) -> Result<PathBuf> {
    let below = from_root(path)?;
    ensure!(
        is_of_layer(&below),
        "{} is of the image or of the machine, and not of a layer",
        path.display()
    );
    Ok(below)
}

fn is_of_layer(path: &Path) -> bool {
    path.starts_with(OF_LAYER) || NEVER.iter().all(|never| !path.starts_with(never))
}

/// A path or pattern on a list of what is carried.
#[derive(Clone, Debug)]
pub struct Rule {
    /// As it is written.
    pub text: String,
    /// The list that it is on.
    pub list: PathBuf,
    pattern: Pattern,
}

impl Rule {
    /// Refuses what is of no layer, and what a list cannot hold.
    pub fn new(text: &str, list: &Path) -> Result<Self> {
        ensure!(
            !text.chars().any(char::is_control),
            "{text:?} has a control character in it; `?` stands for one"
        );
        ensure!(
            text.trim() == text,
            "{text:?} begins or ends with a space; `?` stands for one"
        );
        let path = of_layer(Path::new(text))?;
        let path = path.to_str().context("text is UTF-8")?;
        let first = path.split('/').next().unwrap_or_default();
        ensure!(
            !first.contains(WILD),
            "{text} names no directory to look into"
        );
        let pattern = Pattern::new(path).with_context(|| format!("{text:?} is no pattern"))?;
        Ok(Self {
            text: format!("/{path}"),
            list: list.to_owned(),
            pattern,
        })
    }

    /// Whether it is of this path, which begins at the root and has no slash there.
    pub fn is_of(&self, path: &Path) -> bool {
        const OPTIONS: MatchOptions = MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: false,
        };
        self.pattern.matches_with(&path.to_string_lossy(), OPTIONS)
    }

    /// Whether it can be of a path below that one.
    pub fn is_of_more_below(&self, path: &Path) -> bool {
        let pattern = self.pattern.as_str();
        pattern.contains("**") || pattern.split('/').count() > path.iter().count()
    }

    /// The directory that all its paths are in, from the root, and the name in it, if it is of one path only.
    pub fn place(&self) -> (PathBuf, Option<&str>) {
        let names = self.pattern.as_str().split('/');
        let is_plain = |name: &&str| !name.contains(WILD);
        let mut plain: Vec<&str> = names.clone().take_while(is_plain).collect();
        let only = if plain.len() == names.count() {
            plain.pop()
        } else {
            None
        };
        (plain.iter().collect(), only)
    }
}

/// What is carried to layers of newer bases.
#[derive(Clone, Debug, Default)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Adds those of a list: a path or pattern on each line. Empty lines, and those that begin with `#`, say nothing.
    /// Returns what is wrong with other lines.
    pub fn parse(&mut self, list: &Path, content: &[u8]) -> Vec<String> {
        let mut wrong = Vec::new();
        for line in String::from_utf8_lossy(content).lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Rule::new(line, list) {
                Ok(rule) => self.0.push(rule),
                Err(error) => wrong.push(format!("{error:#}")),
            }
        }
        wrong
    }

    /// Whether a path is carried: it or a directory above is on a list. It begins at the root and has no slash there.
    pub fn matches(&self, path: &Path) -> bool {
        let is_of_one = |path: &Path| self.0.iter().any(|rule| rule.is_of(path));
        is_of_layer(path) && path.ancestors().any(is_of_one)
    }
}

/// A list with one more line at its end.
pub fn with_line(content: &[u8], text: &str) -> Vec<u8> {
    let mut content = content.to_vec();
    if content.last().is_some_and(|last| *last != b'\n') {
        content.push(b'\n');
    }
    content.extend(text.as_bytes());
    content.push(b'\n');
    content
}

/// A list without the lines that say what `rule` does; all others stay as they are.
pub fn without(content: &[u8], rule: &Rule) -> Vec<u8> {
    let is_other = |line: &&[u8]| {
        let text = String::from_utf8_lossy(line);
        Rule::new(text.trim(), &rule.list).map_or(true, |of_line| of_line.text != rule.text)
    };
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines.filter(is_other).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<Rule> {
        Rule::new(text, Path::new("files"))
    }

    #[test]
    fn only_what_is_below_etc_is_merged() {
        for (path, wanted) in [
            ("/etc/issue", Ok("etc/issue")),
            ("//etc/./ssh/", Ok("etc/ssh")),
            ("/etc", Err("not below /etc")),
            ("/etcetera/x", Err("not below /etc")),
            ("/", Err("everything")),
            ("", Err("does not begin with a slash")),
            ("etc/issue", Err("does not begin with a slash")),
            ("/etc/../root/x", Err("has `..` in it")),
        ] {
            match (below_etc(Path::new(path)), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, Path::new(wanted), "{path}"),
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{path}: {error}");
                }
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_rule_is_of_what_a_layer_can_have() {
        for (text, wanted) in [
            ("/root/.ssh", Ok("/root/.ssh")),
            ("//srv/./www/", Ok("/srv/www")),
            ("/usr/local/bin/*", Ok("/usr/local/bin/*")),
            ("/opt/**/conf", Ok("/opt/**/conf")),
            ("/etc/x y", Ok("/etc/x y")),
            ("/sysadmin/x", Ok("/sysadmin/x")),
            ("/usr/bin/ls", Err("of the image")),
            ("/usr/l*/x", Err("of the image")),
            ("/proc/1", Err("of the image")),
            ("/sys", Err("of the image")),
            ("/dev/null", Err("of the image")),
            ("/run/x", Err("of the image")),
            ("/", Err("everything")),
            ("/*", Err("names no directory")),
            ("/[e]tc/x", Err("names no directory")),
            ("root/x", Err("does not begin with a slash")),
            ("# /root/x", Err("does not begin with a slash")),
            ("/root/../etc", Err("has `..` in it")),
            ("/root/a\nb", Err("control character")),
            ("/root/a ", Err("ends with a space")),
            ("/root/a[", Err("is no pattern")),
            ("/root/a**", Err("is no pattern")),
        ] {
            match (rule(text), wanted) {
                (Ok(rule), Ok(wanted)) => assert_eq!(rule.text, wanted),
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{text}: {error}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn lists_say_what_is_carried() {
        let list = b"# ours\n\n/root/.ssh\n  /srv/*.conf\r\n/usr/local/**/x\n/usr/bin/x\n../y\n/opt/\xff\n";
        let mut rules = Rules::default();
        let wrong = rules.parse(Path::new("files"), list);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        for (path, wanted) in [
            ("root/.ssh", true),
            ("root/.ssh/authorized_keys", true),
            ("root", false),
            ("root/.sshd", false),
            ("srv/a.conf", true),
            ("srv/a.conf/below", true),
            ("srv/a/b.conf", false),
            ("usr/local/x", true),
            ("usr/local/a/b/x", true),
            ("usr/local/a", false),
            ("usr/bin/x", false),
            ("opt/\u{fffd}", true),
        ] {
            assert_eq!(rules.matches(Path::new(path)), wanted, "{path}");
        }
        assert!(!Rules::default().matches(Path::new("root")));
    }

    #[test]
    fn a_rule_says_where_to_look() {
        for (text, dir, only) in [
            ("/root", "", Some("root")),
            ("/root/.ssh", "root", Some(".ssh")),
            ("/srv/*.conf", "srv", None),
            ("/srv/a/*/b", "srv/a", None),
        ] {
            assert_eq!(rule(text).unwrap().place(), (dir.into(), only), "{text}");
        }
        for (text, path, wanted) in [
            ("/srv/*/b", "srv/a", true),
            ("/srv/*/b", "srv/a/c", false),
            ("/srv/**/b", "srv/a/c", true),
        ] {
            let found = rule(text).unwrap().is_of_more_below(Path::new(path));
            assert_eq!(found, wanted, "{text} {path}");
        }
    }

    #[test]
    fn other_lines_of_a_list_stay_what_they_are() {
        for (before, after) in [
            ("", "/srv/x\n"),
            ("# a\n", "# a\n/srv/x\n"),
            ("/root/y", "/root/y\n/srv/x\n"),
        ] {
            assert_eq!(with_line(before.as_bytes(), "/srv/x"), after.as_bytes());
        }
        let wanted = rule("/srv/x").unwrap();
        for (before, after) in [
            ("/srv/x\n", ""),
            (
                "# /srv/x\n /srv/x/ \n\n/srv/xy\n/srv/x",
                "# /srv/x\n\n/srv/xy\n",
            ),
            ("caf\u{e9}\n", "caf\u{e9}\n"),
        ] {
            let found = without(before.as_bytes(), &wanted);
            assert_eq!(String::from_utf8(found).unwrap(), after);
        }
    }
}
