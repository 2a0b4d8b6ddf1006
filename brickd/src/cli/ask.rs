//! Questions: `… (y/n) `.

use std::io::{BufRead, IsTerminal, Write};

use super::Failure;
use super::grammar::Mode;

/// Longest answer read; more is not an answer.
const ANSWER_BYTES_MAX: u64 = 1024;

/// Who answers questions in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Nobody: every answer is yes.
    Yes,
    /// Standard input.
    Input,
    /// Nobody, and yes was not agreed to.
    Nobody,
}

impl Asker {
    /// As `--mode` says; without it a terminal is asked and anything else is not.
    pub fn new(mode: Option<Mode>) -> Self {
        match mode {
            Some(Mode::Script) => Asker::Yes,
            Some(Mode::Interactive) => Asker::Input,
            None if std::io::stdin().is_terminal() => Asker::Input,
            None => Asker::Nobody,
        }
    }

    /// Asks; anything but yes is a failure. `command` names what is not done then.
    pub fn confirm(self, command: &str, question: &str) -> Result<(), Failure> {
        match self {
            Asker::Yes => Ok(()),
            Asker::Input => {
                let mut input = std::io::stdin().lock();
                ask(&mut input, &mut std::io::stderr(), command, question)
            }
            Asker::Nobody => Err(Failure(format!(
                "{command}: failed: {question} Standard input is no terminal to answer this on: \
                 add --mode=script to answer yes"
            ))),
        }
    }
}

fn ask(
    input: &mut dyn BufRead,
    output: &mut dyn Write,
    command: &str,
    question: &str,
) -> Result<(), Failure> {
    let unanswered = |why: String| Failure(format!("{command}: failed: {why}"));
    loop {
        let mut answer = String::new();
        write!(output, "{question} (y/n) ")
            .and_then(|()| output.flush())
            .and_then(|()| {
                std::io::Read::take(&mut *input, ANSWER_BYTES_MAX).read_line(&mut answer)
            })
            .map_err(|error| unanswered(format!("the answer could not be read: {error}")))?;
        if answer.is_empty() {
            return Err(unanswered("the question was not answered".to_owned()));
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return Ok(()),
            "n" | "no" => return Err(unanswered("answered no, nothing was changed".to_owned())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(text: &str) -> (Result<(), Failure>, String) {
        let mut output = Vec::new();
        let result = ask(&mut text.as_bytes(), &mut output, "volume stop: v", "Sure?");
        (result, String::from_utf8(output).unwrap())
    }

    #[test]
    fn only_yes_goes_on() {
        let (result, asked) = answered("y\n");
        assert_eq!((result, asked.as_str()), (Ok(()), "Sure? (y/n) "));
        assert!(answered("YES\n").0.is_ok());
        assert!(answered("n\n").0.unwrap_err().0.contains("answered no"));
        assert!(answered("").0.unwrap_err().0.contains("not answered"));
        let (result, asked) = answered("what\ny\n");
        assert!(result.is_ok());
        assert_eq!(asked.matches("(y/n)").count(), 2);
    }

    #[test]
    fn without_a_terminal_the_cure_is_named() {
        let said = Asker::Nobody
            .confirm("volume stop: v", "Sure?")
            .unwrap_err()
            .0;
        assert!(said.contains("--mode=script"), "{said}");
        assert!(Asker::new(Some(Mode::Script)).confirm("x", "Sure?").is_ok());
    }
}
