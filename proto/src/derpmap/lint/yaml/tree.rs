//! YAML as a tree that keeps what a map's reader would forget: which of two equal names came first, what stood in quotes. Scalars mean what the
//! Go package `gopkg.in/yaml.v3` takes them for.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};

use crate::limits::{DERP_MAP_LEN_MAX, JSON_DEPTH_MAX};

/// Values in a file once its aliases are followed: what the longest file can hold without any.
const VALUES_MAX: usize = DERP_MAP_LEN_MAX / 2;

/// A YAML value as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    Scalar(Scalar, String),
    List(Vec<Self>),
    /// Pairs of a name and a value, in order.
    Map(Vec<(Self, Self)>),
}

/// What a scalar means where nothing says which type is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text,
}

impl Yaml {
    /// What it is, for people.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Scalar(Scalar::Null, _) => "null",
            Self::Scalar(Scalar::Bool(_), _) => "a truth value",
            Self::Scalar(Scalar::Integer(_) | Scalar::Float(_), _) => "a number",
            Self::Scalar(Scalar::Text, _) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }

    pub(super) const fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(Scalar::Null, _))
    }
}

/// What a file holds.
pub(super) struct File {
    /// The first document; `None` if there is none.
    pub(super) document: Option<Yaml>,
    /// Others follow, which nobody reads.
    pub(super) has_more: bool,
}

/// Reads a file.
///
/// # Errors
/// A sentence that names the line.
pub(super) fn read(text: &str) -> Result<File, String> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchors: HashMap::new(), values: 0 };
    let mut document = None;
    loop {
        match reader.next()? {
            Event::DocumentStart(_) if document.is_some() => return Ok(File { document, has_more: true }),
            Event::DocumentStart(_) => {
                let first = reader.next()?;
                document = Some(reader.value(first, 0)?.0);
            }
            Event::StreamEnd => return Ok(File { document, has_more: false }),
            _ => {}
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// Values that aliases may repeat, with their sizes.
    anchors: HashMap<usize, (Yaml, usize)>,
    /// So many values were read, repeated ones included.
    values: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.events.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(format!("is not YAML: {} in line {}", error.info(), error.marker().line())),
            None => Ok(Event::StreamEnd),
        }
    }

    /// The value that begins with `first`, and how many values it is made of.
    fn value(&mut self, first: Event<'a>, depth: usize) -> Result<(Yaml, usize), String> {
        if depth > JSON_DEPTH_MAX {
            return Err(format!("is nested too deep: a DERP map nests 5 deep, {JSON_DEPTH_MAX} is the most that is read"));
        }
        let (value, size, anchor) = match first {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.clone());
                let is_text = tag.as_deref().map_or(style != ScalarStyle::Plain, |tag| tag == "str");
                let meaning = if is_text { Scalar::Text } else { meaning(&text) };
                (Yaml::Scalar(meaning, text.into_owned()), 1, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let (list, size) = self.list(depth)?;
                (Yaml::List(list), size, anchor)
            }
            Event::MappingStart(anchor, _) => {
                let (map, size) = self.map(depth)?;
                (Yaml::Map(map), size, anchor)
            }
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let (value, size) = known.ok_or("has an alias inside of what it stands for")?;
                self.count(size)?;
                return Ok((value, size));
            }
            _ => return Err("is not YAML: a value is missing".to_owned()),
        };
        self.count(1)?;
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), size));
        }
        Ok((value, size))
    }

    fn list(&mut self, depth: usize) -> Result<(Vec<Yaml>, usize), String> {
        let (mut list, mut size) = (Vec::new(), 1);
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok((list, size)),
                first => {
                    let (value, more) = self.value(first, depth + 1)?;
                    list.push(value);
                    size += more;
                }
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<(Vec<(Yaml, Yaml)>, usize), String> {
        let (mut map, mut merged, mut size) = (Vec::new(), Vec::new(), 1);
        loop {
            let (name, len) = match self.next()? {
                Event::MappingEnd => break,
                first => self.value(first, depth + 1)?,
            };
            let first = self.next()?;
            let (value, more) = self.value(first, depth + 1)?;
            size += len + more;
            match (&name, value) {
                (Yaml::Scalar(Scalar::Text, text), Yaml::Map(pairs)) if text == "<<" => merged.extend(pairs),
                (_, value) => map.push((name, value)),
            }
        }
        // What is merged gives way to what the mapping itself says.
        for (name, value) in merged {
            if !map.iter().any(|(known, _)| *known == name) {
                map.push((name, value));
            }
        }
        Ok((map, size))
    }

    fn count(&mut self, more: usize) -> Result<(), String> {
        self.values = self.values.saturating_add(more);
        if self.values > VALUES_MAX { Err("is too large once its aliases are followed".to_owned()) } else { Ok(()) }
    }
}

/// What a text without quotes means.
fn meaning(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Scalar::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Scalar::Float(f64::NEG_INFINITY),
        _ => {}
    }
    let plain = text.replace('_', "");
    if let Some(number) = integer(&plain) {
        return Scalar::Integer(number);
    }
    let is_decimal = plain.bytes().any(|byte| byte.is_ascii_digit())
        && plain.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    match plain.parse() {
        Ok(number) if is_decimal => Scalar::Float(number),
        _ => Scalar::Text,
    }
}

/// With the prefixes that Go knows; a leading 0 is octal.
fn integer(plain: &str) -> Option<i128> {
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(plain);
    let (radix, digits) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &unsigned[2..]),
        [b'0', b'o' | b'O', ..] => (8, &unsigned[2..]),
        [b'0', b'b' | b'B', ..] => (2, &unsigned[2..]),
        [b'0', _, ..] => (8, &unsigned[1..]),
        _ => (10, unsigned),
    };
    // Beyond 64 bits it is a floating-point number.
    let number = digits.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| u64::from_str_radix(digits, radix).ok())??;
    Some(if plain.starts_with('-') { -i128::from(number) } else { i128::from(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_mean_what_go_takes_them_for() {
        for (text, number) in [
            ("900", 900),
            ("+7", 7),
            ("-1", -1),
            ("9_00", 900),
            ("0x384", 900),
            ("0o17", 15),
            ("017", 15),
            ("0b101", 5),
            ("0", 0),
            ("18446744073709551615", i128::from(u64::MAX)),
        ] {
            assert_eq!(meaning(text), Scalar::Integer(number), "{text}");
        }
        for (text, number) in
            [("0900", 900.0), ("1e3", 1000.0), (".5", 0.5), ("-5.", -5.0), ("18446744073709551616", 18_446_744_073_709_551_616.0)]
        {
            assert_eq!(meaning(text), Scalar::Float(number), "{text}");
        }
        for text in ["yes", "inf", "nan", "infinity", "192.0.2.1", "2001:db8::1", "2024-01-01", "0x", "+-1", "e", "900a", "é"] {
            assert_eq!(meaning(text), Scalar::Text, "{text}");
        }
    }

    #[test]
    fn aliases_are_followed_but_not_without_end() {
        let read = |text: &str| read(text).map(|file| file.document);
        let text = |text: &str| Yaml::Scalar(Scalar::Text, text.to_owned());
        let one = || Yaml::Scalar(Scalar::Integer(1), "1".to_owned());
        let merged = read("a: &x {k: 1, l: 1}\nb:\n  <<: *x\n  l: o\n").expect("YAML");
        let pair = |name: &str, value| (text(name), value);
        let (x, b) = (vec![pair("k", one()), pair("l", one())], vec![pair("l", text("o")), pair("k", one())]);
        assert_eq!(merged, Some(Yaml::Map(vec![pair("a", Yaml::Map(x)), pair("b", Yaml::Map(b))])));
        assert!(read("a: &a [*a]").is_err());
        let mut bomb = "a0: &a0 [x]\n".to_owned();
        for level in 1..30 {
            bomb.push_str(&format!("a{level}: &a{level} [{0}, {0}, {0}, {0}]\n", format_args!("*a{}", level - 1)));
        }
        assert_eq!(read(&bomb), Err("is too large once its aliases are followed".to_owned()));
        assert!(read(&"[".repeat(40)).is_err_and(|why| why.contains("nested too deep")));
        assert!(read("a: [").is_err_and(|why| why.contains("is not YAML") && why.contains("line")));
        assert_eq!(read(""), Ok(None));
    }
}
