//! Words of a person about one statement: `/*+ route=replica consistency=bounded:5s */`.

use crate::consistency::Level;

/// Where a person wants a statement to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// On the primary, whatever it is.
    Primary,
    /// On a replica, though its functions are unknown. Never obeyed for what visibly writes.
    Replica,
}

impl Target {
    /// The values of `route=` and of the setting `stemma.route`.
    pub fn parse(text: &str) -> Option<Target> {
        let is = |word: &str| text.eq_ignore_ascii_case(word);
        if is("primary") || is("rw") || is("read-write") {
            Some(Target::Primary)
        } else if is("replica") || is("ro") || is("read-only") {
            Some(Target::Replica)
        } else {
            None
        }
    }
}

/// What a comment asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hint {
    /// `route=primary|replica`.
    pub route: Option<Target>,
    /// `consistency=strong|session|bounded:<time>|eventual`.
    pub consistency: Option<Level>,
    /// `token=v1:...`, as given out by a router.
    pub token: Option<String>,
    /// The first word that was not understood; it had no effect.
    pub unknown: Option<String>,
}

impl Hint {
    /// Reads the bytes between `/*+` and `*/`. Words are separated by blanks or commas. `None` if no word was ours: other
    /// products use such comments too.
    pub fn parse(bytes: &[u8]) -> Option<Hint> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut hint = Hint::default();
        let mut ours = false;
        for word in text.split([' ', '\t', '\n', '\r', ',']).filter(|word| !word.is_empty()) {
            let Some((key, value)) = word.split_once('=') else { continue };
            let understood = match key.to_ascii_lowercase().as_str() {
                "route" => Target::parse(value).map(|target| hint.route = Some(target)),
                "consistency" => value.parse().ok().map(|level| hint.consistency = Some(level)),
                "token" => {
                    hint.token = Some(value.to_owned());
                    Some(())
                }
                _ => continue,
            };
            ours = true;
            if understood.is_none() && hint.unknown.is_none() {
                hint.unknown = Some(word.to_owned());
            }
        }
        ours.then_some(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Millis;

    #[test]
    fn a_hint_is_read_and_what_is_wrong_in_it_is_named() {
        let hint = Hint::parse(b" route=replica consistency=bounded:5s ").expect("ours");
        assert_eq!(hint.route, Some(Target::Replica));
        assert_eq!(hint.consistency, Some(Level::Bounded(Millis(5000))));
        let hint = Hint::parse(b"ROUTE=Primary,token=v1:a:1/1:0/0").expect("ours");
        assert_eq!((hint.route, hint.token.as_deref()), (Some(Target::Primary), Some("v1:a:1/1:0/0")));
        let hint = Hint::parse(b"route=somewhere").expect("ours");
        assert_eq!((hint.route, hint.unknown.as_deref()), (None, Some("route=somewhere")));
        assert_eq!(Hint::parse(b" SeqScan(a) Leading((a b)) "), None);
        assert_eq!(Hint::parse(b"\xff route=replica"), None);
    }
}
