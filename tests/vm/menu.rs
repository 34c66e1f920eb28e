//! GRUB's menu and its entry editor, read from the screen that GRUB draws on the serial line.

use std::time::{Duration, Instant};

use anyhow::Result;
use vt100::{Parser, Screen};

use super::console::Console;
use super::qemu::Vm;

/// GRUB's size of a serial terminal.
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// From the firmware to the menu, and for the answer to one key, in a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const END_OF_LINE: &str = "\x05";
const BOOT: &str = "\x18";

/// The menu on a machine's screen.
pub struct Menu<'a> {
    console: &'a mut Console,
    parser: Parser,
    /// How much of what the machine said is on the screen.
    drawn: usize,
}

impl Vm {
    /// Waits for GRUB's menu.
    pub fn menu(&mut self) -> Result<Menu<'_>> {
        let mut menu = Menu {
            console: &mut self.console,
            parser: Parser::new(ROWS, COLUMNS, 0),
            drawn: 0,
        };
        menu.wait_for("GRUB menu with a highlighted entry", highlighted)?;
        Ok(menu)
    }
}

impl Menu<'_> {
    /// The titles in the menu, from the top, as far as they fit on the screen.
    pub fn titles(&self) -> Vec<String> {
        rows(self.parser.screen())
            .into_iter()
            .filter_map(|row| title(&row))
            .collect()
    }

    /// What the screen shows, without the empty rows at its end.
    pub fn screen(&self) -> String {
        let rows = rows(self.parser.screen());
        rows.join("\n").trim_end().to_owned()
    }

    /// Moves with the arrow keys until the entry of `layer` is highlighted.
    pub fn highlight(&mut self, layer: &str) -> Result<()> {
        let mut before = None;
        loop {
            let now = self.wait_for("another highlighted entry", |screen| {
                highlighted(screen).filter(|now| Some(now) != before.as_ref())
            });
            let Ok(now) = now else {
                let titles = self.titles().join("\n");
                return self
                    .console
                    .fail(&format!("no entry for {layer} in the menu:\n{titles}"));
            };
            if has_word(&now.1, layer) {
                return Ok(());
            }
            // Below the screen there can be more.
            let key = if self.is_above(layer, now.0) {
                UP
            } else {
                DOWN
            };
            before = Some(now);
            self.console.send(key)?;
        }
    }

    /// Whether the entry of `layer` is on the screen in a row above `limit`.
    fn is_above(&self, layer: &str, limit: u16) -> bool {
        let rows = rows(self.parser.screen());
        let mut above = rows.iter().take(limit.into()).filter_map(|row| title(row));
        above.any(|title| has_word(&title, layer))
    }

    /// Boots the entry of `layer`, picked with the arrow keys.
    pub fn choose(mut self, layer: &str) -> Result<()> {
        self.highlight(layer)?;
        self.console.send("\r")
    }

    /// Boots the highlighted entry with ` options` typed at the end of its `linux` line.
    pub fn boot_with(mut self, options: &str) -> Result<()> {
        self.console.send("e")?;
        self.wait_for("linux line in GRUB's editor", |screen| {
            let is_drawn = !screen.hide_cursor() && rows(screen).iter().any(|row| is_linux(row));
            is_drawn.then_some(())
        })?;
        let mut before = None;
        loop {
            let (position, line) = self.wait_for("the next line in the editor", |screen| {
                // GRUB hides the cursor while it draws, and then it may be anywhere.
                let position = screen.cursor_position();
                let has_moved = !screen.hide_cursor() && Some(position) != before;
                has_moved.then(|| (position, row(screen, position.0)))
            })?;
            if is_linux(&line) {
                break;
            }
            before = Some(position);
            self.console.send(DOWN)?;
        }
        self.console.send(&format!("{END_OF_LINE} {options}"))?;
        self.wait_for("the options in the editor", |screen| {
            unwrapped(screen).contains(options).then_some(())
        })?;
        self.console.send(BOOT)
    }

    /// Waits until `look` finds something on the screen.
    fn wait_for<T>(&mut self, what: &str, look: impl Fn(&Screen) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let said = self.console.all();
            self.parser.process(&said[self.drawn..]);
            self.drawn = said.len();
            if let Some(found) = look(self.parser.screen()) {
                return Ok(found);
            }
            if !self.console.wait_for_more(self.drawn, deadline) {
                let screen = self.parser.screen().contents();
                return self
                    .console
                    .fail(&format!("no {what}; the screen shows\n{screen}"));
            }
        }
    }
}

/// The number of the highlighted row and the title in it.
fn highlighted(screen: &Screen) -> Option<(u16, String)> {
    let middle = COLUMNS / 2;
    let at = (0..ROWS).find(|&at| screen.cell(at, middle).is_some_and(vt100::Cell::inverse))?;
    // GRUB leaves the cursor at the end of the highlighted row when it has drawn all of it.
    let is_drawn = screen.cursor_position() == (at, COLUMNS - 3);
    is_drawn.then(|| Some((at, title(&row(screen, at))?)))?
}

fn rows(screen: &Screen) -> Vec<String> {
    screen.rows(0, COLUMNS).collect()
}

fn row(screen: &Screen, at: u16) -> String {
    screen.rows(0, COLUMNS).nth(at.into()).unwrap_or_default()
}

/// The title in a row of the menu, which is drawn between two bars, the highlighted one behind a
/// star.
fn title(row: &str) -> Option<String> {
    let inside = row.trim().strip_prefix('|')?.strip_suffix('|')?;
    let title = inside.trim_start_matches(['*', ' ']).trim_end();
    (!title.is_empty()).then(|| title.into())
}

/// Whether a row of the editor begins the `linux` command.
fn is_linux(row: &str) -> bool {
    row.trim_matches(['|', ' ']).starts_with("linux")
}

/// What the editor shows, with the lines joined that it breaks with a backslash at its right edge.
fn unwrapped(screen: &Screen) -> String {
    let lines = rows(screen);
    let inside = lines
        .iter()
        .map(|row| row.trim().trim_matches('|').trim_end());
    inside.fold(String::new(), |text, line| match line.strip_suffix('\\') {
        Some(broken) => text + broken,
        None => text + line + "\n",
    })
}

/// Whether `word` is in `text` with white space or nothing on both sides, so that Base-0.1 is not
/// found in Base-0.10.
fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|other| other == word)
}
