//! Secrets by file: a secret setting `NAME` may also be given by a file that `NAME_FILE` names, as Docker and
//! Kubernetes mount secrets. A setting is a secret where its value is hidden from `--help` (`hide_env_values`); nothing
//! else is needed to make it readable from a file.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{Arg, ArgMatches, Command, Parser, error::ErrorKind, parser::ValueSource, value_parser};

/// Reads the settings from flags and environment, secrets also from the files that are named. Returns with them the
/// settings that are given and no secrets, as in `LOG=debug SHUTDOWN_LAG=1s`, for the log.
pub fn parse<S: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<(S, String), clap::Error> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let secrets = secrets(&S::command());
    let mut command = with_files(S::command(), &secrets);

    let mut lenient = command.clone();
    for secret in &secrets {
        // A secret that comes from a file is missing, or empty, until the file is read.
        lenient =
            lenient.mut_arg(&secret.id, |arg| arg.required(false).value_parser(value_parser!(OsString)));
    }
    let named = lenient.try_get_matches_from_mut(&args)?;
    for secret in &secrets {
        let value = secret.value(&named);
        let value = value.map_err(|why| clap::Error::raw(ErrorKind::ValueValidation, why + "\n"))?;
        args.extend(value.map(|value| OsString::from(format!("--{}={value}", secret.flag))));
    }
    let matches = command.try_get_matches_from_mut(args)?;
    let given = given(&command, &matches);
    Ok((S::from_arg_matches(&matches)?, given))
}

/// Returns the settings that do not have their default values, without the secrets.
fn given(command: &Command, matches: &ArgMatches) -> String {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_env_values_set());
    let given = shown.filter_map(|arg| {
        let id = arg.get_id().as_str();
        let value = matches.get_raw(id)?.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
        let default = arg.get_default_values().join(OsStr::new(","));
        let is_given =
            matches.value_source(id)? != ValueSource::DefaultValue && *value != *default.to_string_lossy();
        is_given.then(|| format!("{}={value}", arg.get_env().unwrap_or(OsStr::new(id)).to_string_lossy()))
    });
    given.collect::<Vec<_>>().join(" ")
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

    /// Returns the value that the file has, or `None` where no file is named.
    fn value(&self, named: &ArgMatches) -> Result<Option<String>, String> {
        // Compose sets a variable that has no value to nothing.
        let file = named.get_one::<OsString>(&self.file_variable()).filter(|file| !file.is_empty());
        let Some(file) = file else { return Ok(None) };
        let direct = named.value_source(&self.id).is_some_and(|source| source != ValueSource::DefaultValue);
        let given = named.get_raw(&self.id).into_iter().flatten().any(|value| !value.is_empty());
        if direct && given {
            return Err(format!("{} and {} are both set; set one", self.variable, self.file_variable()));
        }
        let wrong = |why: &str| format!("{} {}: {why}", self.file_variable(), Path::new(file).display());
        let bytes = std::fs::read(file).map_err(|error| wrong(&error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("not UTF-8 text"))?;
        let value = text.strip_suffix('\n').unwrap_or(&text);
        let value = value.strip_suffix('\r').unwrap_or(value);
        if value.is_empty() {
            return Err(wrong("empty"));
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

/// Adds a flag and a variable for the file of each secret.
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
    fn the_log_tells_the_settings_that_are_given_and_no_secret() {
        let secret = file(b"by file");
        let args = ["test", "--url-file", &secret, "--list", "hidden", "--plain", "shown"];
        let (_, given) = parse::<Settings>(args.into_iter().map(OsString::from)).unwrap();
        assert_eq!(given, format!("TEST_PLAIN=shown TEST_URL_FILE={secret}"));
        let (_, given) = parse::<Settings>(["test", "--url", "x"].into_iter().map(OsString::from)).unwrap();
        assert_eq!(given, "");
    }

    #[test]
    fn a_secret_by_file_has_the_content_without_its_last_newline() {
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
    fn a_secret_by_file_that_cannot_be_had_is_a_line_without_the_secret() {
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
            let said = parsed(&flags).unwrap_err();
            assert!(said.contains(line) && !said.contains("hidden"), "{flags:?}: {said}");
        }
        assert!(parsed(&["--url=x", "--url-file", ""]).is_ok(), "an empty variable is not set");
    }

    #[test]
    fn the_help_names_the_file_of_each_secret_and_of_nothing_else() {
        let help = parsed(&["--help"]).unwrap_err();
        assert!(help.contains("TEST_URL_FILE") && help.contains("TEST_LIST_FILE"), "{help}");
        assert!(!help.contains("TEST_PLAIN_FILE"), "{help}");
    }
}
