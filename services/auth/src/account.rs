//! The rules of an account: valid usernames, e-mail addresses and passwords. Values of these types are valid by
//! construction.

use std::{fmt, str::FromStr};

use secrecy::{ExposeSecret as _, SecretString};
use unicode_normalization::UnicodeNormalization as _;

const USERNAME_LEN: std::ops::RangeInclusive<usize> = 3..=32;
/// The maximum length of an address: a path of 256 without its brackets (RFC 5321 §4.5.3.1.3).
const MAX_EMAIL_CHARS: usize = 254;
/// RFC 5321 §4.5.3.1.1.
const MAX_LOCAL_PART_BYTES: usize = 64;
/// RFC 1035 §2.3.4.
const MAX_LABEL_BYTES: usize = 63;
/// The length of a password in characters. The upper bound limits the cost of a hash.
const PASSWORD_CHARS: std::ops::RangeInclusive<usize> = 8..=256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Admin,
}

impl Role {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// The error for a stored name that is no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        [Self::User, Self::Admin].into_iter().find(|role| role.as_str() == name).ok_or(UnknownRole)
    }
}

/// A username: 3..32 of `A-Z a-z 0-9 _ . -`. It has no `@`, so that it is never mistaken for an e-mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    pub fn parse(text: String) -> Result<Self, &'static str> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if !text.bytes().all(is_allowed) {
            return Err("may contain only A-Z a-z 0-9 _ . -");
        }
        if !USERNAME_LEN.contains(&text.len()) {
            return Err("must have 3 to 32 characters");
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An e-mail address: a dot-atom (RFC 5322 §3.2.3) at a domain name of two labels or more. It is ASCII, so that case
/// folding is unambiguous.
#[derive(Clone, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    pub fn parse(text: String) -> Result<Self, &'static str> {
        if text.chars().count() > MAX_EMAIL_CHARS {
            return Err("must have at most 254 characters");
        }
        let is_valid =
            text.rsplit_once('@').is_some_and(|(local, domain)| is_dot_atom(local) && is_domain(domain));
        if is_valid { Ok(Self(text)) } else { Err("is not an e-mail address") }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Hides the address, which is personal data, from logs.
impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Email(..)")
    }
}

fn is_dot_atom(local: &str) -> bool {
    let is_atext = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
    local.len() <= MAX_LOCAL_PART_BYTES
        && local.split('.').all(|atom| !atom.is_empty() && atom.bytes().all(is_atext))
}

fn is_domain(domain: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.contains('.') && domain.split('.').all(is_label)
}

/// Bounds the text of a password before its normalization: 256 decomposed characters.
const MAX_PASSWORD_BYTES: usize = 4096;

/// A password in the form of OpaqueString (RFC 8265 §4.2), as keyboards compose characters differently. All characters
/// are allowed, so that older passwords stay valid.
#[derive(Clone, Debug)]
pub struct Password {
    text: SecretString,
    /// The text as it was typed, if it differs.
    typed: Option<SecretString>,
}

impl Password {
    /// Parses a password to set.
    pub fn new(text: String) -> Result<Self, &'static str> {
        let password = Self::for_verification(text)?;
        if password.length() < *PASSWORD_CHARS.start() {
            Err("must have 8 to 256 characters")
        } else {
            Ok(password)
        }
    }

    /// Parses a password to verify. A text that no password can have is rejected before it is hashed.
    pub fn for_verification(typed: String) -> Result<Self, &'static str> {
        if typed.is_empty() {
            return Err("must not be empty");
        }
        if typed.contains('\0') {
            return Err("must not contain NUL");
        }
        let text: String = match typed.len() {
            ..=MAX_PASSWORD_BYTES => typed.chars().map(normalize_space).nfc().collect(),
            _ => return Err("must have at most 256 characters"),
        };
        let typed = (typed != text).then(|| SecretString::from(typed));
        let password = Self { text: SecretString::from(text), typed };
        if password.length() > *PASSWORD_CHARS.end() {
            return Err("must have at most 256 characters");
        }
        Ok(password)
    }

    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }

    /// Returns the text as it was typed, if it differs. Older hashes were made of it.
    pub fn expose_typed(&self) -> Option<&str> {
        self.typed.as_ref().map(SecretString::expose_secret)
    }

    fn length(&self) -> usize {
        self.expose().chars().count()
    }
}

/// Maps each space of Unicode's category Zs to the ASCII space.
fn normalize_space(char: char) -> char {
    match char {
        '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => ' ',
        char => char,
    }
}

/// A username or an e-mail address for a sign-in, in the form under which attempts are counted: trimmed and in lower
/// case.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginName(String);

impl LoginName {
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.chars().count() > MAX_EMAIL_CHARS {
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
    fn only_valid_usernames_parse() {
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
    fn only_valid_addresses_parse() {
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
    fn the_length_of_a_password_is_counted_in_characters() {
        for good in ["12345678", "        ", &"ß".repeat(256), "pass\nword"] {
            assert_eq!(Password::new(good.to_owned()).unwrap().expose(), good);
        }
        for bad in ["", "1234567", "ßßßßßßß", &"x".repeat(257), "1234567\0"] {
            assert!(Password::new(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(Password::for_verification("1".to_owned()).is_ok(), "a password to verify may be short");
        for bad in ["", "1\0", &"x".repeat(257)] {
            assert!(Password::for_verification(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_normalized_to_its_composed_form() {
        let password = |text: &str| Password::new(text.to_owned()).unwrap();
        assert_eq!(password("caf\u{e9}-caf\u{e9}").expose_typed(), None);
        for typed in ["cafe\u{301}-caf\u{e9}", "cafe\u{301}-cafe\u{301}"] {
            assert_eq!(password(typed).expose(), "caf\u{e9}-caf\u{e9}");
            assert_eq!(password(typed).expose_typed(), Some(typed));
        }
        assert_eq!(password("full\u{3000}width\u{a0}space").expose(), "full width space");
        assert_ne!(password("Correct\u{ff21}").expose(), "CorrectA", "compatibility forms stay distinct");
        assert_eq!(password(&"e\u{301}".repeat(256)).length(), 256);
        assert!(Password::new("e\u{301}".repeat(4)).is_err(), "four characters are too few");
        assert!(Password::for_verification("x".repeat(100_000)).is_err());
    }

    #[test]
    fn debug_output_hides_the_password() {
        let password = Password::new("correct horse".to_owned()).unwrap();
        assert!(!format!("{password:?}").contains("horse"));
    }

    #[test]
    fn spellings_of_a_login_name_are_equal() {
        let name = LoginName::parse("ann@example.com").unwrap();
        for same in ["ANN@example.com", " ann@Example.com", "ann@example.com\t\n", "\u{a0}ann@example.com"] {
            assert!(LoginName::parse(same).unwrap() == name, "{same:?}");
        }
        for bad in ["", "  ", "a\0", &"x".repeat(255)] {
            assert!(LoginName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_the_names_of_roles_parse() {
        assert_eq!("admin".parse(), Ok(Role::Admin));
        assert_eq!("user".parse(), Ok(Role::User));
        assert_eq!("service".parse::<Role>(), Err(UnknownRole));
    }
}
