//! The rules of an account: what a username, an e-mail address and a password may be. A value of these types
//! is a valid one.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use unicode_normalization::UnicodeNormalization as _;

const USERNAME: std::ops::RangeInclusive<usize> = 3..=32;
/// RFC 5321, 4.5.3.1: a path of 256 with its brackets.
const LONGEST_EMAIL: usize = 254;
/// RFC 5321, 4.5.3.1.1.
const LONGEST_LOCAL_PART: usize = 64;
/// RFC 1035, 2.3.4.
const LONGEST_LABEL: usize = 63;
/// Characters. The upper bound keeps a hash from costing more than a hash.
const PASSWORD: std::ops::RangeInclusive<usize> = 8..=256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Admin,
}

impl Role {
    pub const fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        [Self::User, Self::Admin].into_iter().find(|role| role.word() == word)
    }
}

/// 3..32 of `A-Z a-z 0-9 _ . -`. No `@`, so that it is never taken for an e-mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    pub fn parse(text: String) -> Result<Self, &'static str> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if !text.bytes().all(known) {
            return Err("may contain only A-Z a-z 0-9 _ . -");
        }
        if !USERNAME.contains(&text.len()) {
            return Err("must have 3 to 32 characters");
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An address that mail could be sent to: a dot-atom (RFC 5322, 3.2.3) at a domain name of two labels or
/// more. ASCII, so that case means the same everywhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    pub fn parse(text: String) -> Result<Self, &'static str> {
        if text.chars().count() > LONGEST_EMAIL {
            return Err("must have at most 254 characters");
        }
        let sound =
            text.rsplit_once('@').is_some_and(|(local, domain)| is_dot_atom(local) && is_domain(domain));
        if sound { Ok(Self(text)) } else { Err("is not an e-mail address") }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A person's address belongs in no log.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

fn is_dot_atom(local: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    local.len() <= LONGEST_LOCAL_PART
        && local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(known))
}

fn is_domain(domain: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LONGEST_LABEL).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.contains('.') && domain.split('.').all(is_label)
}

/// The longest text that is looked at as a password: 256 characters, each decomposed. Bytes.
const MAX_PASSWORD_BYTES: usize = 4096;

/// A password. Keyboards compose characters differently: its form is that of OpaqueString (RFC 8265 §4.2), in which the
/// same password is the same text. Characters are not restricted: what was set before can be typed again.
#[derive(Clone, Debug)]
pub struct Password {
    text: SecretString,
    /// As it was typed in, where that differs.
    typed: Option<SecretString>,
}

impl Password {
    /// One that may be set.
    pub fn new(text: String) -> Result<Self, &'static str> {
        let password = Self::presented(text)?;
        if password.length() < *PASSWORD.start() {
            Err("must have 8 to 256 characters")
        } else {
            Ok(password)
        }
    }

    /// One that is tried: what could never have been set is not worth a hash.
    pub fn presented(typed: String) -> Result<Self, &'static str> {
        if typed.is_empty() {
            return Err("must not be empty");
        }
        if typed.contains('\0') {
            return Err("must not contain NUL");
        }
        let text: String = match typed.len() {
            ..=MAX_PASSWORD_BYTES => typed.chars().map(plain_space).nfc().collect(),
            _ => return Err("must have at most 256 characters"),
        };
        let typed = (typed != text).then(|| SecretString::from(typed));
        let password = Self { text: SecretString::from(text), typed };
        if password.length() > *PASSWORD.end() {
            return Err("must have at most 256 characters");
        }
        Ok(password)
    }

    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// The text as it was typed in, where that differs: older hashes were made of it.
    pub fn expose_typed(&self) -> Option<&str> {
        self.typed.as_ref().map(SecretString::expose_secret)
    }

    fn length(&self) -> usize {
        self.expose().chars().count()
    }
}

/// Every space of Unicode's category Zs is the one of ASCII.
fn plain_space(char: char) -> char {
    match char {
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => ' ',
        char => char,
    }
}

/// What somebody signs in with, a username or an e-mail address, in the one form under which tries are
/// counted: neither capitals nor spaces around it make it another.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginName(String);

impl LoginName {
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.chars().count() > LONGEST_EMAIL {
            return Err("must have at most 254 characters");
        }
        if text.contains('\0') {
            return Err("must not contain NUL");
        }
        let name = text.trim();
        if name.is_empty() { Err("must not be empty") } else { Ok(Self(name.to_lowercase())) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames() {
        for good in ["ann", "A_n.n-1", "...", &"x".repeat(32)] {
            assert_eq!(Username::parse(good.to_owned()).unwrap().as_str(), good);
        }
        for bad in
            ["", "an", &"x".repeat(33), "ann ", " ann", "a nn", "ann@x", "änn", "ann\0", "ann\n", "a/b"]
        {
            assert!(Username::parse(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses() {
        let longest_domain = format!("{}.{}.{}.example", "d".repeat(60), "d".repeat(60), "d".repeat(59));
        let longest = format!("{}@{longest_domain}", "l".repeat(254 - 1 - longest_domain.len()));
        assert_eq!(longest.len(), 254);
        for good in
            ["ann@example.com", "a@b.c", "Ann.B+shop@Mail.Example.org", "o'hara@x-y.example", &longest]
        {
            assert_eq!(Email::parse(good.to_owned()).unwrap().as_str(), good);
        }
        let long_local = format!("{}@example.com", "l".repeat(65));
        let long_label = format!("ann@{}.com", "d".repeat(64));
        let too_long = format!("l{longest}");
        for bad in [
            "",
            "ann",
            "@example.com",
            "ann@",
            "ann@localhost",
            "ann@example..com",
            "ann@.example.com",
            "ann@example.com.",
            "ann@-x.com",
            "ann@x-.com",
            ".ann@example.com",
            "ann.@example.com",
            "a..n@example.com",
            "a@b@example.com",
            "a nn@example.com",
            " ann@example.com",
            "ann@example.com ",
            "ann@exam_ple.com",
            "ann@example.com\0",
            "ann@example.com\r\nBcc: x@y.z",
            "änn@example.com",
            &long_local,
            &long_label,
            &too_long,
        ] {
            assert!(Email::parse(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn passwords_count_characters_not_bytes() {
        for good in ["12345678", "        ", &"ß".repeat(256), "pass\nword"] {
            assert_eq!(Password::new(good.to_owned()).unwrap().expose(), good);
        }
        for bad in ["", "1234567", "ßßßßßßß", &"x".repeat(257), "1234567\0"] {
            assert!(Password::new(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Password::presented("1".to_owned()).is_ok(), "a wrong one may be short");
        for bad in ["", "1\0", &"x".repeat(257)] {
            assert!(Password::presented(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_the_same_however_it_is_composed() {
        let password = |text: &str| Password::new(text.to_owned()).unwrap();
        assert_eq!(password("caf\u{e9}-caf\u{e9}").expose_typed(), None);
        for typed in ["cafe\u{301}-caf\u{e9}", "cafe\u{301}-cafe\u{301}"] {
            assert_eq!(password(typed).expose(), "caf\u{e9}-caf\u{e9}");
            assert_eq!(password(typed).expose_typed(), Some(typed));
        }
        assert_eq!(password("full\u{3000}width\u{a0}space").expose(), "full width space");
        assert_ne!(password("Correct\u{ff21}").expose(), "CorrectA", "compatible is not the same");
        assert_eq!(password(&"e\u{301}".repeat(256)).length(), 256);
        assert!(Password::new("e\u{301}".repeat(4)).is_err(), "four characters are too few");
        assert!(Password::presented("x".repeat(100_000)).is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        let password = Password::new("correct horse".to_owned()).unwrap();
        assert!(!format!("{password:?}").contains("horse"));
    }

    #[test]
    fn spellings_of_a_login_name_are_one() {
        let name = LoginName::parse("ann@example.com").unwrap();
        for same in ["ANN@example.com", " ann@Example.com", "ann@example.com\t\n", "\u{a0}ann@example.com"] {
            assert!(LoginName::parse(same).unwrap() == name, "{same:?}");
        }
        for bad in ["", "  ", "a\0", &"x".repeat(255)] {
            assert!(LoginName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn roles_have_their_words() {
        assert_eq!(Role::from_word("admin"), Some(Role::Admin));
        assert_eq!(Role::from_word("user"), Some(Role::User));
        assert_eq!(Role::from_word("service"), None);
    }
}
