//! `gpt4roi man`: manual pages, for whoever makes a package of the program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

/// Write the manual pages
///
/// One page for the program and one for each of its commands: gpt4roi.1, gpt4roi-ask.1 and so on. Pages that are there
/// are replaced.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The folder for the pages; it is made if it is not there
    #[arg(long, value_name = "DIR", env = "GPT4ROI_OUT")]
    out: PathBuf,
}

const EXAMPLES: &str = "\
Examples:
  gpt4roi man --out man1 && man man1/gpt4roi-ask.1
  gpt4roi man --out /usr/local/share/man/man1";

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let named = || args.out.display().to_string();
    fs::create_dir_all(&args.out).with_context(named)?;
    let mut program = crate::Cli::command().disable_help_subcommand(true);
    program.build();
    write(&program, &args.out).with_context(named)
}

/// The pages of a command and of its own commands.
fn write(command: &Command, out: &Path) -> io::Result<()> {
    for command in command.get_subcommands() {
        write(command, out)?;
    }
    let man = Man::new(command.clone()).source(concat!("gpt4roi ", env!("CARGO_PKG_VERSION"))).manual("GPT4RoI");
    fs::write(out.join(man.get_filename()), page(command, &man)?)
}

/// As [`Man::render`] writes it, but for what stands behind the options.
fn page(command: &Command, man: &Man) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(help) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        notes(&help.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// Examples and the like, line by line as they were laid out. What ends in a colon at the left edge is a heading.
fn notes(help: &str) -> Roff {
    let mut notes = Roff::new();
    for line in help.lines() {
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            Some(heading) => notes.control("fi", []).control("SH", [heading.to_uppercase().as_str()]).control("nf", []),
            None => notes.text([roman(line)]),
        };
    }
    notes.control("fi", []);
    notes
}
