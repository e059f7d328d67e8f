//! `gpt4roi completions`: what a shell needs to complete commands and flags.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::session::print;

/// Print completions for a shell
///
/// For example, in ~/.bashrc: source <(gpt4roi completions bash)
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // Into memory first: the generator panics if its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "gpt4roi", &mut script);
    print(&String::from_utf8(script)?)
}
