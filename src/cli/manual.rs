//! `completion` and `man`: what clap generates from the definitions of the commands.

use std::io::Write;

use clap::Command;
use clap_complete::Shell;

use super::Exit;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  portcullis completion bash > /etc/bash_completion.d/portcullis
  portcullis completion zsh > ~/.zfunc/_portcullis")]
pub struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  portcullis man > /usr/local/share/man/man1/portcullis.1
  portcullis man client create")]
pub struct Page {
    /// The command, such as `client create`. If absent, portcullis itself.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl Completion {
    pub fn run(&self, mut commands: Command) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut commands, "portcullis", &mut script);
        Ok(std::io::stdout().write_all(&script)?)
    }
}

impl Page {
    pub fn run(&self, mut commands: Command) -> anyhow::Result<()> {
        commands.build();
        let mut command = &commands;
        for name in &self.command {
            command = command.find_subcommand(name).ok_or_else(|| Exit {
                code: 2,
                message: format!("there is no command `{}`", self.command.join(" ")),
            })?;
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut page)?;
        Ok(std::io::stdout().write_all(&page)?)
    }
}
