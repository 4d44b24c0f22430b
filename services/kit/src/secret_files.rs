//! Secrets from files: a secret setting `NAME` can also be read from the file in `NAME_FILE`, as Docker and Kubernetes
//! mount secrets. Every setting whose value is hidden from `--help` (`hide_env_values`) is a secret.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{Arg, ArgMatches, Command, Parser, error::ErrorKind, parser::ValueSource, value_parser};

/// Parses the settings from flags, environment and secret files. Returns them, with a summary for the log of those that
/// are set and not secret, as in `LOG=debug SHUTDOWN_LAG=1s`.
pub fn parse<S: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<(S, String), clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let secrets = secrets(&S::command());
    let mut command = with_files(S::command(), &secrets);

    let mut lenient = command.clone();
    for secret in &secrets {
        // A secret from a file is missing or empty until the file is read.
        lenient =
            lenient.mut_arg(&secret.id, |arg| arg.required(false).value_parser(value_parser!(OsString)));
    }
    let file_matches = lenient.try_get_matches_from_mut(&args)?;
    for secret in &secrets {
        let value = secret.read_file(&file_matches);
        let value = value.map_err(|reason| clap::Error::raw(ErrorKind::ValueValidation, reason + "\n"))?;
        args.extend(value.map(|value| OsString::from(format!("--{}={value}", secret.flag))));
    }
    let matches = command.try_get_matches_from_mut(args)?;
    let summary = non_default(&command, &matches);
    Ok((S::from_arg_matches(&matches)?, summary))
}

/// Returns the settings with other values than their defaults, without the secrets.
fn non_default(command: &Command, matches: &ArgMatches) -> String {
    let public = command.get_arguments().filter(|arg| !arg.is_hide_env_values_set());
    let non_default = public.filter_map(|arg| {
        let id = arg.get_id().as_str();
        let value = matches.get_raw(id)?.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
        let default = arg.get_default_values().join(OsStr::new(","));
        let is_set =
            matches.value_source(id)? != ValueSource::DefaultValue && *value != *default.to_string_lossy();
        is_set.then(|| format!("{}={value}", arg.get_env().unwrap_or(OsStr::new(id)).to_string_lossy()))
    });
    non_default.collect::<Vec<_>>().join(" ")
}

#[derive(Debug)]
struct Secret {
    id: String,
    flag: String,
    variable: String,
}

impl Secret {
    fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable)
    }

    /// Reads the value from the file, or returns `None` if no file is set.
    fn read_file(&self, matches: &ArgMatches) -> Result<Option<String>, String> {
        // Compose sets a variable without a value to the empty string.
        let file = matches.get_one::<OsString>(&self.file_variable()).filter(|file| !file.is_empty());
        let Some(file) = file else { return Ok(None) };
        let is_explicit =
            matches.value_source(&self.id).is_some_and(|source| source != ValueSource::DefaultValue);
        let has_value = matches.get_raw(&self.id).into_iter().flatten().any(|value| !value.is_empty());
        if is_explicit && has_value {
            return Err(format!("{} and {} are both set; set one", self.variable, self.file_variable()));
        }
        let fail = |reason: &str| format!("{} {}: {reason}", self.file_variable(), Path::new(file).display());
        let bytes = std::fs::read(file).map_err(|error| fail(&error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| fail("not UTF-8 text"))?;
        let value = text.strip_suffix('\n').unwrap_or(&text);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(fail("empty"));
        }
        Ok(Some(value.to_owned()))
    }
}

fn secrets(command: &Command) -> Vec<Secret> {
    let hidden = command.get_arguments().filter(|arg| arg.is_hide_env_values_set());
    hidden
        .filter_map(|arg| {
            Some(Secret {
                id: arg.get_id().to_string(),
                flag: arg.get_long()?.to_owned(),
                variable: arg.get_env()?.to_str()?.to_owned(),
            })
        })
        .collect()
}

/// Adds a flag and an environment variable for the file of each secret.
fn with_files(command: Command, secrets: &[Secret]) -> Command {
    secrets.iter().fold(command, |command, secret| {
        let variable = secret.file_variable();
        let file = Arg::new(variable.clone())
            .long(format!("{}-file", secret.flag))
            .value_name("FILE")
            .value_parser(value_parser!(OsString))
            .help(format!(
                "A file with {}, in its place; a newline at its end does not count",
                secret.variable
            ));
        command.arg(file.env(variable))
    })
}

#[cfg(test)]
mod tests {
    use secrecy::{ExposeSecret, SecretString};

    use super::*;
    use crate::settings;

    #[derive(Debug, Parser)]
    struct Settings {
        #[arg(long, env = "TEST_URL", hide_env_values = true, value_parser = settings::secret)]
        url: SecretString,
        #[arg(long, env = "TEST_LIST", hide_env_values = true, value_delimiter = ',', default_value = "")]
        list: Vec<SecretString>,
        #[arg(long, env = "TEST_PLAIN")]
        plain: Option<String>,
    }

    fn file(content: &[u8]) -> String {
        let path = std::env::temp_dir().join(format!("shoppee-secret-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn parsed(flags: &[&str]) -> Result<Settings, String> {
        let args = [&["test"], flags].concat();
        let parsed = parse(args.into_iter().map(OsString::from));
        parsed.map(|(settings, _)| settings).map_err(|error: clap::Error| error.render().to_string())
    }

    #[test]
    fn the_summary_has_the_settings_that_are_set_and_no_secret() {
        let secret = file(b"by file");
        let args = ["test", "--url-file", &secret, "--list", "hidden", "--plain", "shown"];
        let (_, summary) = parse::<Settings>(args.into_iter().map(OsString::from)).unwrap();
        assert_eq!(summary, format!("TEST_PLAIN=shown TEST_URL_FILE={secret}"));
        let (_, summary) = parse::<Settings>(["test", "--url", "x"].into_iter().map(OsString::from)).unwrap();
        assert_eq!(summary, "");
    }

    #[test]
    fn a_secret_from_a_file_has_the_content_without_its_last_newline() {
        for (content, value) in
            [("x y", "x y"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), ("=,-", "=,-")]
        {
            let settings = parsed(&["--url-file", &file(content.as_bytes())]).unwrap();
            assert_eq!(settings.url.expose_secret(), value);
        }
        let settings = parsed(&["--url", "", "--list-file", &file(b"a,b\n")]);
        assert!(settings.unwrap_err().contains("empty"), "one by file and the other empty");
        let settings = parsed(&["--url=x", "--list-file", &file(b"a,b\n")]).unwrap();
        let list: Vec<_> = settings.list.iter().map(ExposeSecret::expose_secret).collect();
        assert_eq!(list, ["a", "b"]);
    }

    #[test]
    fn an_unreadable_secret_file_is_reported_in_a_line_without_the_secret() {
        let url = file(b"hidden");
        for (flags, line) in [
            (vec!["--url=hidden", "--url-file", &url], "TEST_URL and TEST_URL_FILE are both set; set one"),
            (vec!["--url-file", "/none/such"], "TEST_URL_FILE /none/such: No such file"),
            (vec!["--url-file", "/tmp"], "TEST_URL_FILE /tmp: Is a directory"),
            (vec!["--url-file", &file(b"\n")], ": empty"),
            (vec!["--url-file", &file(b"\xff")], ": not UTF-8 text"),
            (vec!["--url-file", ""], "--url"),
            (vec![], "--url"),
        ] {
            let message = parsed(&flags).unwrap_err();
            assert!(message.contains(line) && !message.contains("hidden"), "{flags:?}: {message}");
        }
        assert!(parsed(&["--url=x", "--url-file", ""]).is_ok(), "an empty variable is not set");
    }

    #[test]
    fn the_help_lists_a_file_setting_for_each_secret_only() {
        let help = parsed(&["--help"]).unwrap_err();
        assert!(help.contains("TEST_URL_FILE") && help.contains("TEST_LIST_FILE"), "{help}");
        assert!(!help.contains("TEST_PLAIN_FILE"), "{help}");
    }
}
