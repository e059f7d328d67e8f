//! The `gpt4roi` command: ask about regions of a picture, train, evaluate and look inside.
//!
//! Each subcommand is a file with its `Args` and its `run`. Data goes to standard output, everything
//! else to standard error.

mod annotate;
mod ask;
mod bench;
mod byte_order_mark;
mod cache;
mod captions;
mod chat;
mod choices;
mod completions;
mod convert;
mod describe;
mod drafts;
mod eval;
mod eval_predictions;
mod export;
mod failure;
mod inspect;
mod interrupts;
mod language_bench;
mod man;
mod mask_file;
mod options;
mod predict;
mod predict_check;
mod predictions;
mod pull;
mod regions;
mod scenes;
mod serve;
mod session;
mod side_file;
mod trace;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Point at anything in a picture and talk about it.
///
/// GPT4RoI answers questions about a picture and about regions of it. Regions are boxes, points, polygons
/// and masks, given with --region, --point, --polygon and --mask and mentioned as <region1>, <region2>, …,
/// or coordinates inside the question itself.
#[derive(Debug, Parser)]
#[command(name = "gpt4roi", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Ask(ask::Args),
    Describe(describe::Args),
    Chat(chat::Args),
    Predict(predict::Args),
    Serve(serve::Args),
    Pull(pull::Args),
    Cache(cache::Args),
    Convert(convert::Args),
    Train(train::Args),
    Export(export::Args),
    Eval(eval::Args),
    Scenes(scenes::Args),
    Inspect(inspect::Args),
    Trace(trace::Args),
    Bench(bench::Args),
    Completions(completions::Args),
    Man(man::Args),
}

const EXAMPLES: &str = "\
Examples:
  What is in a box (pixels: left, top, right, bottom)?
    gpt4roi ask scene.png 'What is <region1>?' --region 62,41,240,180

  Two regions, and a picture with both drawn in:
    gpt4roi ask scene.png 'How does <region1> relate to <region2>?' \\
      --region 62,41,240,180 --region 300,50,420,200 --annotate marked.png

  A point, or a mask of the picture's size:
    gpt4roi ask scene.png 'Is <region1> like <region2>?' --point 150,110 --mask cat.png

  No flag at all: coordinates in the question, a box or a point, as fractions of the picture:
    gpt4roi ask scene.png 'What is at (0.5, 0.6)?'

  Talk about a picture:
    gpt4roi chat scene.png

  The same in a browser, and for programs:
    gpt4roi serve

Exit codes:
  0  it worked
  1  it failed: a file, a model or a number was not what it should be
  2  the command was not understood: an unknown flag, an impossible value or question
  130  training was stopped, by Ctrl-C or SIGTERM, and goes on with --resume

Every flag can also be set in the environment: --max-new-tokens is GPT4ROI_MAX_NEW_TOKENS.";

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Ask(args) => ask::run(args),
        Command::Describe(args) => describe::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Train(args) => train::run(args),
        Command::Export(args) => export::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Scenes(args) => scenes::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Trace(args) => trace::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_variable_and_its_help() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                let name = argument.get_long().unwrap_or_default();
                if ["help", "version"].contains(&name) {
                    continue;
                }
                let expected = format!("GPT4ROI_{}", name.replace('-', "_").to_uppercase());
                let variable = argument.get_env().and_then(|variable| variable.to_str());
                assert_eq!(variable, Some(expected.as_str()), "{} --{name}", command.get_name());
                assert!(argument.get_help().is_some(), "{} --{name} has no help", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    /// A heading holds for all flags behind it, so that a command's own flags come before those it shares with others.
    #[test]
    fn flags_stand_under_their_own_headings() {
        const MODEL: &[&str] = &["model", "adapter", "device", "dtype"];
        const REGIONS: &[&str] = &["region", "point", "polygon", "mask", "coords", "box-format", "clip", "zoom"];
        fn check(command: &clap::Command) {
            if command.get_name() == "convert" {
                return; // it makes a model, and opens none
            }
            for argument in command.get_arguments() {
                let (name, heading) = (argument.get_long().unwrap_or_default(), argument.get_help_heading());
                for (shared, names) in [("Model", MODEL), ("Regions", REGIONS)] {
                    let is_one = names.contains(&name);
                    assert_eq!(heading == Some(shared), is_one, "{} --{name}: {heading:?}", command.get_name());
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
