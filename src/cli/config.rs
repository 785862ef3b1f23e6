//! `config`: checks or shows the configuration.

use clap::Subcommand;
use serde_json::{Value, json};

use super::{Output, table};
use crate::config::{self, Overrides, Setting};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Check whether a server would start with it (exit code 78 if not). Does not connect to the database.
    Check,
    /// Show every value and its source. Secrets are hidden.
    Dump,
}

pub fn run(arguments: &Arguments, overrides: &Overrides, output: Output) -> anyhow::Result<()> {
    let settings = config::settings(overrides, config::environment()?)?;
    match &arguments.action {
        Action::Check => {
            let set = settings.iter().filter(|setting| setting.is_set()).count();
            let keys = settings.len();
            output.print(
                &json!({ "valid": true, "set": set, "keys": keys }),
                format!("The configuration is valid: {set} of {keys} keys are set."),
            );
        }
        Action::Dump => {
            let rows: Vec<Vec<String>> = settings.iter().map(row).collect();
            let values: Vec<Value> = settings.iter().map(view).collect();
            table::print(output, &["key", "value", "from"], &rows, &values.into());
        }
    }
    Ok(())
}

fn row(setting: &Setting) -> Vec<String> {
    let value = match &setting.value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    vec![setting.key.clone(), value, setting.source.clone()]
}

fn view(setting: &Setting) -> Value {
    json!({ "key": setting.key, "value": setting.value, "from": setting.source })
}
