//! Printing of results: aligned tables for people, stable JSON for programs.

use std::fmt;
use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Aligned columns, numbers and times for people. May change between versions.
    #[default]
    Table,
    /// One JSON value, indented. Fields are only ever added.
    Json,
    /// One JSON value per line; a list is one line per entry.
    Jsonl,
}

/// Where results go, and how.
pub struct Output<'a> {
    format: Format,
    out: &'a mut dyn Write,
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("format", &self.format).finish_non_exhaustive()
    }
}

impl<'a> Output<'a> {
    /// Prints to `out` in `format`.
    pub fn new(format: Format, out: &'a mut dyn Write) -> Self {
        Self { format, out }
    }

    /// The chosen format.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Prints one result: `value` for programs, `human` for people.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn one(&mut self, value: &impl Serialize, human: impl FnOnce() -> String) -> io::Result<()> {
        match self.format {
            Format::Table => {
                let text = human();
                write!(self.out, "{text}{}", if text.is_empty() || text.ends_with('\n') { "" } else { "\n" })?;
            }
            Format::Json => writeln!(self.out, "{}", serde_json::to_string_pretty(value)?)?,
            Format::Jsonl => writeln!(self.out, "{}", serde_json::to_string(value)?)?,
        }
        self.out.flush()
    }

    /// Prints a list: an array, a line per entry, or a table with a row per entry.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn list<T: Serialize>(&mut self, items: &[T], table: impl FnOnce(&[T]) -> Table) -> io::Result<()> {
        match self.format {
            Format::Jsonl => {
                for item in items {
                    writeln!(self.out, "{}", serde_json::to_string(item)?)?;
                }
                self.out.flush()
            }
            Format::Table | Format::Json => self.one(&items, || table(items).to_string()),
        }
    }

    /// Prints bytes as they are, whatever the format.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Prints one entry of an endless stream: always a single line, in JSON formats a JSON value.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn event(&mut self, value: &impl Serialize, human: impl FnOnce() -> String) -> io::Result<()> {
        match self.format {
            Format::Table => writeln!(self.out, "{}", human())?,
            Format::Json | Format::Jsonl => writeln!(self.out, "{}", serde_json::to_string(value)?)?,
        }
        self.out.flush()
    }
}

/// Rows in aligned columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with column titles.
    #[must_use]
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// A table of properties: name left, value right, no titles.
    #[must_use]
    pub fn properties() -> Self {
        Self::default()
    }

    /// Adds a row; an empty cell is shown as `-`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) -> &mut Self {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }).to_vec());
        self
    }

    /// Adds a property.
    pub fn property(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.row([name.to_owned(), value.into()])
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).chain([self.header.len()]).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        let header: Vec<String> = self.header.iter().map(|&title| title.to_owned()).collect();
        for row in self.rows.iter().chain([&header]) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in [&header].into_iter().filter(|row| !row.is_empty()).chain(&self.rows) {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `yes` or `no`.
#[must_use]
pub fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// A count with thousands separated: `1,234,567`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A span of time in the unit that suits it: `850 ms`, `12.3 s`, `4 min 5 s`, `3 h 20 min`, `12 d 4 h`.
#[must_use]
pub fn milliseconds(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", seconds, ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A latency: `180 µs`, `1.25 ms`.
#[must_use]
pub fn microseconds(us: u64) -> String {
    if us < 1000 { format!("{us} µs") } else { format!("{}.{:02} ms", us / 1000, us % 1000 / 10) }
}

/// A point in time given in microseconds since the Unix epoch, in UTC: `2026-11-21 12:00:00.123`.
#[must_use]
pub fn timestamp(us: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).map_or_else(
        |_| us.to_string(),
        |moment| {
            let (hour, minute, second, ms) = moment.to_hms_milli();
            format!("{} {hour:02}:{minute:02}:{second:02}.{ms:03}", moment.date())
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format) -> String {
        #[derive(Serialize)]
        struct Row {
            name: &'static str,
            clients: u64,
        }
        let mut bytes = Vec::new();
        let rows = [Row { name: "a-1", clients: 12_345 }, Row { name: "longer", clients: 0 }];
        Output::new(format, &mut bytes)
            .list(&rows, |rows| {
                let mut table = Table::new(["NAME", "CLIENTS", "NOTE"]);
                for row in rows {
                    table.row([row.name.to_owned(), count(row.clients), String::new()]);
                }
                table
            })
            .expect("memory");
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn lists_in_every_format() {
        assert_eq!(printed(Format::Table), "NAME    CLIENTS  NOTE\na-1     12,345   -\nlonger  0        -\n");
        assert_eq!(printed(Format::Jsonl), "{\"name\":\"a-1\",\"clients\":12345}\n{\"name\":\"longer\",\"clients\":0}\n");
        assert_eq!(
            printed(Format::Json),
            "[\n  {\n    \"name\": \"a-1\",\n    \"clients\": 12345\n  },\n  {\n    \"name\": \"longer\",\n    \"clients\": 0\n  }\n]\n"
        );
    }

    #[test]
    fn numbers_and_times_for_people() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        for (ms, text) in
            [(850, "850 ms"), (12_345, "12.3 s"), (245_000, "4 min 5 s"), (12_000_000, "3 h 20 min"), (1_051_200_000, "12 d 4 h")]
        {
            assert_eq!(milliseconds(ms), text);
        }
        assert_eq!([microseconds(180), microseconds(1256)], ["180 µs", "1.25 ms"]);
        assert_eq!(timestamp(1_700_000_000_123_456), "2023-11-14 22:13:20.123");
        assert_eq!(timestamp(u64::MAX), u64::MAX.to_string());
    }
}
