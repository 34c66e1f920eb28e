//! Hosts in states that nobody has thought of, and chains of starts from there. Whatever the state: what
//! never came up and restarts by itself is started by a counted try or a once only, and what boots
//! without either is the default, or what takes its place.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use imgbased_helper::boot::id::is_ours;

use super::emulator::{Kernel, Start};
use super::host::{Config, FOREIGN_ID, Host, Maker, TRIES, UNREADABLE};

/// What the hosts run on.
#[derive(Clone, Copy)]
pub struct Ground<'a> {
    pub configs: &'a [Config],
    pub machine: Maker<'a>,
    /// Starts in a row, at most.
    pub starts: usize,
    /// Whether there is time for the simplest state in which a failure happens.
    pub simplifies: bool,
}

/// What the default names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The first entry of a layer.
    Layer,
    /// The factory state of a base.
    Base,
    /// An entry in custom.cfg.
    Foreign,
    /// An entry of ours that is gone.
    Gone,
    Nothing,
    /// A place in the menu.
    Number,
    /// An entry of another system that is gone, or one in a submenu.
    ForeignGone,
    /// An entry that was changed so that no menu can have it.
    Unreadable,
    /// An entry of ours that is gone, as is every other that has come up.
    GoneWithAllGood,
}

pub const KINDS: [Saved; 9] = [
    Saved::Layer,
    Saved::Base,
    Saved::Foreign,
    Saved::Gone,
    Saved::Nothing,
    Saved::Number,
    Saved::ForeignGone,
    Saved::Unreadable,
    Saved::GoneWithAllGood,
];

/// What has become of the file that holds the default: grubenv, or loader.conf and the EFI variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Whole,
    Missing,
    Garbage,
    /// Cut off or filled up to this size in bytes.
    Resized(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    name: String,
    is_good: bool,
    /// Its first start that is to succeed, if any ever is.
    succeeds_at: Option<u32>,
    has_two_kernels: bool,
}

/// The state of a host, in the order in which it is brought about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    config: Config,
    layers: Vec<Layer>,
    /// Base-0.1 is the default before that.
    has_foreign: bool,
    trial: Option<(String, u32)>,
    once: Option<String>,
    saved: Saved,
    saved_name: String,
    removed: Vec<String>,
    /// The layer or base whose kernel, else initramfs, is lost.
    lost: Option<(String, bool)>,
    block: Block,
    /// Superusers are set; what was made before may be booted by everybody.
    is_locked: bool,
    /// For what the administrator does between starts.
    seed: u64,
}

impl State {
    pub fn random(rng: &mut Rng, configs: &[Config]) -> Self {
        let mut layers = Vec::new();
        for base in ["Base-0", "Base-1"].iter().take(rng.usize(1..=2)) {
            for number in 1..=rng.usize(1..=4) {
                layers.push(Layer {
                    name: format!("{base}.{number}"),
                    is_good: layers.is_empty() || rng.u8(0..3) == 0,
                    succeeds_at: (rng.u8(0..3) == 0).then(|| rng.u32(1..=3)),
                    has_two_kernels: rng.u8(0..4) == 0,
                });
            }
        }
        let mut names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
        names.push("Base-0".to_owned());
        let name = |rng: &mut Rng| names[rng.usize(..names.len())].clone();
        let saved = KINDS[rng.usize(..KINDS.len())];
        let block = match rng.u8(0..20) {
            0 => Block::Missing,
            1 => Block::Garbage,
            2 => Block::Resized([0, 300, 512, 1023, 1025, 4096][rng.usize(..6)]),
            _ => Block::Whole,
        };
        let config = configs[rng.usize(..configs.len())];
        let has_foreign = saved == Saved::Foreign || rng.u8(0..4) == 0;
        let may_lock = matches!(config, Config::Ours | Config::Mkconfig(_))
            && !has_foreign
            && saved != Saved::Unreadable;
        Self {
            config,
            has_foreign,
            trial: (rng.u8(0..3) > 0).then(|| (name(rng), rng.u32(0..=4))),
            once: (rng.u8(0..3) == 0).then(|| name(rng)),
            saved,
            saved_name: name(rng),
            removed: (0..rng.usize(0..=4).saturating_sub(2))
                .map(|_| name(rng))
                .collect(),
            lost: (rng.u8(0..5) == 0).then(|| (name(rng), rng.bool())),
            block,
            is_locked: may_lock && rng.u8(0..4) == 0,
            seed: rng.u64(..),
            layers,
        }
    }

    /// A host in that state, and whether something is on trial.
    fn build(&self, machine: Maker) -> Result<(Host, bool)> {
        let mut host = Host::empty(self.config, machine)?;
        let has = |base: &str| self.layers.iter().any(|layer| layer.name.starts_with(base));
        for base in ["Base-0", "Base-1"].iter().filter(|base| has(base)) {
            host.add(base)?;
        }
        for layer in &self.layers {
            if layer.has_two_kernels {
                host.install_kernel(&layer.name, "6.0")?;
            }
            host.add(&layer.name)?;
            host.choose_first(&layer.name)?;
            if layer.is_good {
                host.come_up(&layer.name)?;
            }
        }
        if self.has_foreign {
            host.add_foreign()?;
        }
        let is_tried = match &self.trial {
            Some((name, tries)) => host.make_default(name, *tries)?,
            None => false,
        };
        if let Some(name) = &self.once {
            host.once(name)?;
        }
        self.save(&host)?;
        self.remove(&host)?;
        if self.is_locked {
            host.lock()?;
        }
        if let Some((name, is_kernel)) = &self.lost
            && let Ok((_, entry)) = host.entry(name)
        {
            let path = if *is_kernel {
                entry.linux
            } else {
                entry.initrd
            };
            fs::remove_file(host.path(&path))?;
        }
        self.damage(&host)?;
        Ok((host, is_tried))
    }

    /// Names another default, as other programs and people do, whatever is on trial.
    fn save(&self, host: &Host) -> Result<()> {
        let id = match self.saved {
            Saved::Layer | Saved::Base if self.trial.is_some() => return Ok(()),
            Saved::Base => return host.make_default("Base-0", 0).map(drop),
            Saved::Layer => return host.make_default(&self.saved_name, 0).map(drop),
            Saved::Foreign => FOREIGN_ID,
            Saved::Gone | Saved::GoneWithAllGood => "imgbased-Base-9.9",
            Saved::Nothing => "",
            Saved::Number => "0",
            Saved::ForeignGone => "Advanced options>Debian",
            Saved::Unreadable => {
                let id = host.boot.default_id()?.context("there is a default")?;
                let path = host.entry_file(&id).context("it is there")?;
                let text = fs::read_to_string(&path)?;
                fs::write(path, format!("{} {UNREADABLE}\n", text.trim_end()))?;
                return host.render_menu();
            }
        };
        host.name_default(id, self.seed)
    }

    /// Removes entries, but neither the default nor the last that has come up, unless that is asked for.
    fn remove(&self, host: &Host) -> Result<()> {
        let is_asked_for = self.saved == Saved::GoneWithAllGood;
        for entry in host.boot.entries()? {
            let name = entry.layer().context("it boots a layer")?;
            let left = host.boot.entries()?;
            let mut others = left.iter().filter(|other| other.layer() != Some(name));
            let is_removed = if is_asked_for {
                !entry.is_trial() && others.next().is_some()
            } else {
                self.removed.iter().any(|removed| removed == name)
                    && host.boot.default_id()?.as_ref() != Some(&entry.id)
                    && others.any(|other| !other.is_trial())
            };
            if is_removed {
                host.remove(name)?;
            }
        }
        Ok(())
    }

    /// The same state with one thing less.
    fn simpler(&self, configs: &[Config]) -> Vec<Self> {
        let mut found = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            change(&mut state);
            found.push(state);
        };
        for at in 1..self.layers.len() {
            add(&|state| {
                let name = state.layers.remove(at).name;
                let is_other = |other: &String| *other != name;
                state.trial = state.trial.take().filter(|(other, _)| is_other(other));
                state.once = state.once.take().filter(is_other);
                state.lost = state.lost.take().filter(|(other, _)| is_other(other));
                state.removed.retain(is_other);
                if state.saved_name == name {
                    "Base-0.1".clone_into(&mut state.saved_name);
                }
            });
            add(&|state| state.layers[at].is_good = false);
            add(&|state| state.layers[at].succeeds_at = None);
        }
        for at in 0..self.layers.len() {
            add(&|state| state.layers[at].has_two_kernels = false);
        }
        for at in 0..self.removed.len() {
            add(&|state| drop(state.removed.remove(at)));
        }
        add(&|state| state.config = configs[0]);
        add(&|state| state.has_foreign = state.saved == Saved::Foreign);
        add(&|state| state.trial = None);
        add(&|state| state.trial = state.trial.take().map(|(name, _)| (name, 1)));
        add(&|state| state.once = None);
        add(&|state| state.lost = None);
        add(&|state| state.block = Block::Whole);
        found.retain(|state| state != self);
        found
    }

    /// Starts a host in that state until it stops, or often enough, and returns how often. Tells of the
    /// simplest state like this one where it does what it must not.
    pub fn check(&self, ground: &Ground) -> Result<usize> {
        let run = |state: &Self| Chain::new(state, ground)?.run(ground.starts);
        let mut result = run(self);
        let mut state = self.clone();
        while result.is_err() && ground.simplifies {
            let fails = |state: Self| Some((run(&state).err()?, state));
            match state.simpler(ground.configs).into_iter().find_map(fails) {
                Some((error, simpler)) => (result, state) = (Err(error), simpler),
                None => break,
            }
        }
        result
    }

    fn damage(&self, host: &Host) -> Result<()> {
        match self.block {
            Block::Whole => Ok(()),
            Block::Missing => host.lose_default(),
            Block::Garbage => host.damage_default(None),
            Block::Resized(size) => host.damage_default(Some(size)),
        }
    }
}

/// Starts of a host, and what is allowed to it.
struct Chain<'a> {
    state: &'a State,
    host: Host,
    rng: Rng,
    /// What happened.
    told: Vec<String>,
    /// The layer or base on trial, and the tries that are left.
    trial: Option<(String, u32)>,
    /// How often each was to boot once.
    once: BTreeMap<String, u32>,
    /// How often each was started that never came up.
    started: BTreeMap<String, u32>,
    /// The first start of a kernel that succeeds, if one does, of kernels that came while their layers ran.
    kernels: BTreeMap<String, Option<u32>>,
}

fn subject_of_kernel(layer: &str, version: &str) -> String {
    format!("{layer} with Linux {version}")
}

impl<'a> Chain<'a> {
    fn new(state: &'a State, ground: &Ground) -> Result<Self> {
        let (host, is_tried) = state.build(ground.machine)?;
        Ok(Self {
            trial: state.trial.clone().filter(|_| is_tried),
            once: state.once.iter().map(|name| (name.clone(), 1)).collect(),
            rng: Rng::with_seed(state.seed),
            started: BTreeMap::new(),
            kernels: BTreeMap::new(),
            told: Vec::new(),
            state,
            host,
        })
    }

    fn run(&mut self, starts: usize) -> Result<usize> {
        for start in 1..=starts {
            if !self.start().with_context(|| format!("{self}"))? {
                return Ok(start);
            }
        }
        Ok(starts)
    }

    /// Starts the host once, and returns whether it starts again.
    fn start(&mut self) -> Result<bool> {
        let foretold = self.host.boot.next_start()?;
        let start = self.host.start()?;
        self.told.push(start.to_string());
        ensure!(
            self.host.is_foretold(&foretold, &start)?,
            "foretold was: {foretold}"
        );
        let kernel = match start {
            Start::Kernel(kernel) => kernel,
            Start::Restart => return self.restart().map(|()| true),
            Start::Menu | Start::Prompt | Start::Nothing => {
                ensure!(
                    self.may_stop(&start)?,
                    "{start}, and a layer that has come up is whole"
                );
                return Ok(false);
            }
        };
        let name = kernel.layer().map(str::to_owned);
        let subject = name.as_ref().map(|name| self.subject(name, &kernel));
        let is_counted = subject.as_ref().is_some_and(|subject| self.spend(subject));
        // systemd-boot has no entry that waits, and no verb removes the last one that has come up.
        if self.state.config == Config::SystemdBoot && !self.host.has_good()? {
            return Ok(false);
        }
        ensure!(
            is_counted || !kernel.is_trial(),
            "{subject:?} restarts by itself, and has no try left"
        );
        ensure!(
            is_counted || self.is_default(&kernel)?,
            "{kernel:?} boots and is not the default"
        );
        // Another system runs.
        let (Some(name), Some(subject)) = (name, subject) else {
            return Ok(false);
        };
        if self.succeeds(&subject, &kernel) {
            // Nothing is blessed where the entry cannot be read.
            if self.host.entry(&name).is_ok() {
                self.host.come_up_with(&name, &kernel)?;
                // GRUB goes on to count in a block that we do not write to.
                if self.host.boot.damage_of_env()?.is_none() {
                    self.trial.take_if(|(on_trial, _)| *on_trial == subject);
                }
            }
            self.administrate(&name)?;
            return Ok(true);
        }
        Ok(kernel.is_trial())
    }

    /// Whether the host may wait for somebody like that: where a file is lost, or no layer has come up.
    fn may_stop(&self, start: &Start) -> Result<bool> {
        Ok(*start != Start::Prompt && (self.state.lost.is_some() || !self.host.has_good()?))
    }

    /// Whether that is the default, or what takes the place of one that is gone. The choice is GRUB's where
    /// that was no entry of ours.
    fn is_default(&self, kernel: &Kernel) -> Result<bool> {
        let id = self.host.saved_entry()?.unwrap_or_default();
        if id == FOREIGN_ID && self.state.has_foreign {
            return Ok(kernel.layer().is_none());
        }
        if !id.is_empty() && !is_ours(&id) {
            return Ok(true);
        }
        if self.host.entry_file(&id).is_some() {
            return Ok(self.host.linux_of(&id)? == kernel.linux);
        }
        if self.state.config == Config::SystemdBoot {
            // Its first, and what a trial falls back to is that.
            return Ok(!kernel.is_trial());
        }
        let menu = fs::read_to_string(self.host.path("grub/imgbased.cfg"))?;
        let mut blocks = menu.split("\nmenuentry ").skip(1);
        let first = blocks.find(|block| {
            let is_ours = block.contains("--id 'imgbased-");
            is_ours && !block.contains(" imgbased.trial ")
        });
        Ok(first.is_some_and(|block| block.contains(&format!("{} ", kernel.linux))))
    }

    /// What has to come up: a layer, or a kernel that is new in a layer.
    fn subject(&self, layer: &str, kernel: &Kernel) -> String {
        if kernel.is_trial() && self.host.good.contains(layer) {
            subject_of_kernel(layer, kernel.version())
        } else {
            layer.to_owned()
        }
    }

    /// Whether what was started reaches the end of its boot.
    fn succeeds(&mut self, subject: &str, kernel: &Kernel) -> bool {
        if kernel.initrd.is_none() {
            return false;
        }
        if self.host.good.contains(subject) || !subject.contains('.') {
            return true;
        }
        let started = self.started.entry(subject.to_owned()).or_default();
        *started += 1;
        let layers = self.state.layers.iter();
        let mut all = layers.map(|layer| (&layer.name, layer.succeeds_at));
        let of_kernel = self.kernels.get(subject).copied().flatten();
        let of_layer = all.find(|(name, _)| *name == subject);
        of_kernel.or(of_layer.and_then(|(_, at)| at)) == Some(*started)
    }

    /// GRUB has started the machine again, as an entry on trial does whose files are lost.
    fn restart(&mut self) -> Result<()> {
        let (lost, _) = self.state.lost.as_ref().context("nothing is lost")?;
        ensure!(
            self.spend(lost),
            "{lost} has the machine start again, and has no try left"
        );
        Ok(())
    }

    /// Counts a start of what boots once or is on trial, and returns whether it was to boot for that.
    fn spend(&mut self, name: &str) -> bool {
        let on_trial = self.trial.as_mut().filter(|(on_trial, _)| on_trial == name);
        let tries = on_trial.map(|(_, left)| left);
        for left in self.once.get_mut(name).into_iter().chain(tries) {
            if *left > 0 {
                *left -= 1;
                return true;
            }
        }
        false
    }

    /// Does what comes to the mind of somebody while the host runs. A damaged grubenv is repaired before,
    /// or nothing is done.
    fn administrate(&mut self, running: &str) -> Result<()> {
        let names: Vec<String> = self
            .host
            .boot
            .entries()?
            .iter()
            .filter(|entry| self.host.boot.has_kernel(&entry.spec()))
            .filter_map(|entry| entry.layer().map(str::to_owned))
            .collect();
        // Nothing can be chosen where no entry is whole.
        if names.is_empty() {
            return Ok(());
        }
        let name = names[self.rng.usize(..names.len())].clone();
        let what = self.rng.u8(0..8);
        if what > 3 {
            return Ok(());
        }
        if self.host.boot.damage_of_env()?.is_some() {
            self.host.repair_environment()?;
            self.told.push("(repair)".to_owned());
        }
        // A verb may refuse, and changes nothing then.
        let refusal = match what {
            0 => {
                self.told.push(format!("(once {name})"));
                let once = self.host.once(&name);
                // The last that was asked for counts.
                once.map(|()| self.once = BTreeMap::from([(name, 1)])).err()
            }
            1 => {
                let tries = self.rng.u32(0..=2);
                self.told.push(format!("(default {name}, {tries} tries)"));
                let is_tried = self.host.make_default(&name, tries);
                is_tried
                    .map(|is_tried| self.trial = is_tried.then_some((name, tries)))
                    .err()
            }
            2 if self.host.good.contains(running) => {
                let version = format!("6.{}", self.kernels.len() + 2);
                self.told.push(format!("(Linux {version} in {running})"));
                let subject = subject_of_kernel(running, &version);
                let succeeds_at = self.rng.bool().then(|| self.rng.u32(1..=TRIES));
                self.kernels.insert(subject.clone(), succeeds_at);
                let is_tried = self.host.update(running, &version);
                is_tried
                    .map(|is_tried| {
                        if is_tried {
                            self.trial = Some((subject, TRIES));
                        }
                    })
                    .err()
            }
            _ => {
                self.told.push("(no once)".to_owned());
                let cancelled = self.host.cancel_once();
                cancelled.map(|()| self.once.clear()).err()
            }
        };
        self.told
            .extend(refusal.map(|error| format!("({error:#})")));
        Ok(())
    }
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = self.told.join(", ");
        write!(f, "{:#?}\n{told}\n{}", self.state, self.host.describe())
    }
}
