//! `userlist.txt`: `"name" "secret"` per line; and the `key=value` lists of PgBouncer's databases.

/// A user of the list.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// As clients log in.
    pub name: String,
    /// What is known of the password.
    pub secret: UserSecret,
}

/// Which kind of secret the list holds. Secrets are not printed.
#[derive(Clone, PartialEq, Eq)]
pub enum UserSecret {
    /// A SCRAM-SHA-256 verifier, as PostgreSQL stores it.
    Verifier(String),
    /// An MD5 hash: nobody can log in with SCRAM by it.
    Md5,
    /// The password itself, which is not kept.
    Plain,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.secret {
            UserSecret::Verifier(_) => "verifier",
            UserSecret::Md5 => "md5",
            UserSecret::Plain => "plain",
        };
        write!(f, "{}: {kind}", self.name)
    }
}

/// The users of a `userlist.txt`, and the numbers of the lines that were not understood.
pub fn users(text: &str) -> (Vec<User>, Vec<usize>) {
    let (mut users, mut bad) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') {
            continue;
        }
        let read = || {
            let (name, rest) = between_quotes(line)?;
            let (secret, _) = between_quotes(rest.trim_start())?;
            Some(User { name, secret: kind(secret) })
        };
        match read() {
            Some(user) => users.push(user),
            None => bad.push(number + 1),
        }
    }
    (users, bad)
}

fn kind(secret: String) -> UserSecret {
    let md5 =
        secret.len() == 35 && secret.starts_with("md5") && secret[3..].bytes().all(|byte| byte.is_ascii_hexdigit());
    if secret.starts_with("SCRAM-SHA-256$") {
        UserSecret::Verifier(secret)
    } else if md5 {
        UserSecret::Md5
    } else {
        UserSecret::Plain
    }
}

/// The text between double quotes, in which `""` is a quote, and what follows.
fn between_quotes(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut out = String::new();
    loop {
        let (part, tail) = rest.split_once('"')?;
        out.push_str(part);
        match tail.strip_prefix('"') {
            Some(tail) => {
                out.push('"');
                rest = tail;
            }
            None => return Some((out, tail)),
        }
    }
}

/// `a=b c='d e'`: values in single quotes hold blanks, and `''` is a quote.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, tail)) = rest.split_once('=') {
        let tail = tail.trim_start();
        let mut value = String::new();
        let mut letters = tail.char_indices().peekable();
        let inside = tail.starts_with('\'');
        let mut end = tail.len();
        if inside {
            letters.next();
        }
        while let Some((at, letter)) = letters.next() {
            let doubled = inside && letter == '\'' && letters.peek().is_some_and(|&(_, next)| next == '\'');
            if doubled {
                letters.next();
            } else if inside && letter == '\'' {
                end = at + 1;
                break;
            } else if !inside && letter.is_whitespace() {
                end = at;
                break;
            }
            value.push(letter);
        }
        out.push((key.trim().to_owned(), value));
        rest = tail[end..].trim_start();
    }
    out
}
