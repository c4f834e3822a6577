//! How Go reads JSON, where peers rely on it: field names without regard to case, `null` leaves a field as it is, the last of equal
//! names wins, unknown fields are ignored; plus a bound on nesting.

use crate::limits::JSON_DEPTH_MAX;

/// Whether Go's decoder takes `name` for `field`: equal under simple case folding. `field` is ASCII.
pub(crate) fn same_field(name: &str, field: &str) -> bool {
    // The only letters beyond ASCII that fold into it are the long s and the Kelvin sign.
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).eq(field.chars().map(fold))
}

/// Whether arrays and objects nest at most [`JSON_DEPTH_MAX`] deep. Says nothing about malformed text, which the parser refuses.
pub(crate) fn depth_is_bounded(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return false;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// An error with the field's name in front.
pub(crate) fn in_field<E: serde::de::Error>(field: &str, error: &E) -> E {
    E::custom(format_args!("`{field}`: {error}"))
}

/// Implements `Deserialize` for a struct with `Default`, as Go's decoder fills a struct.
///
/// Errors name the field. The fields of the second list refuse `null`.
macro_rules! deserialize_folded {
    (
        $type:ty,
        $expecting:literal,
        { $($json:literal => $field:ident),* $(,)? }
        $(, never_null { $($strict_json:literal => $strict_field:ident),* $(,)? })?
    ) => {
        impl<'de> ::serde::Deserialize<'de> for $type {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> ::serde::de::Visitor<'de> for Fields {
                    type Value = $type;

                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_map<A: ::serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut value = <$type>::default();
                        while let Some(name) = map.next_key::<String>()? {
                            $(if $crate::json::same_field(&name, $json) {
                                let given = map.next_value::<Option<_>>().map_err(|e| $crate::json::in_field($json, &e))?;
                                if let Some(given) = given {
                                    value.$field = given;
                                }
                                continue;
                            })*
                            $($(if $crate::json::same_field(&name, $strict_json) {
                                value.$strict_field = map.next_value().map_err(|e| $crate::json::in_field($strict_json, &e))?;
                                continue;
                            })*)?
                            map.next_value::<::serde::de::IgnoredAny>()?;
                        }
                        Ok(value)
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}
pub(crate) use deserialize_folded;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_go_folds_them() {
        for name in ["meshKey", "MESHKEY", "meſhKey", "mesh\u{212a}ey"] {
            assert!(same_field(name, "meshKey"), "{name}");
        }
        for name in ["mesh-key", "meshKey ", "", "meshKeyy"] {
            assert!(!same_field(name, "meshKey"), "{name}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_strings_only() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(depth_is_bounded(nested(JSON_DEPTH_MAX).as_bytes()));
        assert!(!depth_is_bounded(nested(JSON_DEPTH_MAX + 1).as_bytes()));
        assert!(depth_is_bounded(format!(r#""\"{}""#, "[".repeat(99)).as_bytes()));
        assert!(!depth_is_bounded(format!(r#""\\"{}"#, "{".repeat(99)).as_bytes()));
    }
}
