//! The messages of a chat and what the commands do to them. A turn is a user's message with all that answers it.

use crate::chat_file::{self, ChatFile};

/// A conversation.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// Its messages, and what a loaded file says beside them.
    pub chat: ChatFile,
}

impl Conversation {
    /// A conversation that has only a system message, or nothing.
    pub fn new(system: Option<&str>) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.set_system(system.unwrap_or_default());
        conversation
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.chat.messages.first().filter(|first| chat_file::role(first) == "system").map(chat_file::content)
    }

    /// Sets the system message; an empty one is none.
    pub fn set_system(&mut self, text: &str) {
        let n_system = self.n_system();
        let new = (!text.is_empty()).then(|| chat_file::message("system", text));
        self.chat.messages.splice(..n_system.min(1), new);
    }

    /// Adds a message of the user.
    pub fn ask(&mut self, text: &str) {
        self.chat.messages.push(chat_file::message("user", text));
    }

    /// Adds the model's answer.
    pub fn answer(&mut self, text: &str) {
        self.chat.messages.push(chat_file::message("assistant", text));
    }

    /// Forgets all but the system message.
    pub fn clear(&mut self) {
        let n_system = self.n_system();
        self.chat.messages.truncate(n_system);
    }

    /// Takes back what follows the last message of the user. False if there is no such message.
    pub fn forget_answer(&mut self) -> bool {
        let last_question = self.last_question();
        if let Some(index) = last_question {
            self.chat.messages.truncate(index + 1);
        }
        last_question.is_some()
    }

    /// Takes back the last turn and gives its question.
    pub fn undo(&mut self) -> Option<String> {
        let index = self.last_question()?;
        let question = self.chat.messages.get(index).map(|message| chat_file::content(message).to_owned());
        self.chat.messages.truncate(index);
        question
    }

    /// Number of turns.
    pub fn n_turns(&self) -> usize {
        self.chat.messages.iter().filter(|message| chat_file::role(message) == "user").count()
    }

    /// Drops the oldest turn (and whatever stands before it), unless it is the only one. The system message stays.
    pub fn drop_oldest_turn(&mut self) -> bool {
        let mut questions =
            self.chat.messages.iter().enumerate().filter(|(_, message)| chat_file::role(message) == "user");
        let Some((second, _)) = questions.nth(1) else { return false };
        let n_system = self.n_system();
        self.chat.messages.drain(n_system..second);
        true
    }

    /// The leading system messages.
    fn n_system(&self) -> usize {
        self.chat.messages.iter().take_while(|message| chat_file::role(message) == "system").count()
    }

    fn last_question(&self) -> Option<usize> {
        self.chat.messages.iter().rposition(|message| chat_file::role(message) == "user")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(roles: &[&str]) -> Conversation {
        let mut conversation = Conversation::default();
        for (index, role) in roles.iter().enumerate() {
            conversation.chat.messages.push(chat_file::message(role, &index.to_string()));
        }
        conversation
    }

    fn contents(conversation: &Conversation) -> String {
        conversation.chat.messages.iter().map(chat_file::content).collect()
    }

    #[test]
    fn the_system_message_stays_when_turns_go() {
        let mut chat = conversation(&["system", "user", "assistant", "user", "assistant", "user"]);
        assert!(chat.drop_oldest_turn());
        assert_eq!(contents(&chat), "0345");
        assert!(chat.drop_oldest_turn());
        assert_eq!(contents(&chat), "05");
        assert!(!chat.drop_oldest_turn(), "the only turn stays");
        chat.clear();
        assert_eq!(contents(&chat), "0");
    }

    #[test]
    fn answers_and_turns_are_taken_back_whole() {
        let mut chat = conversation(&["user", "assistant", "user", "assistant", "tool", "assistant"]);
        assert!(chat.forget_answer());
        assert_eq!(contents(&chat), "012");
        assert_eq!(chat.undo().as_deref(), Some("2"));
        assert_eq!(contents(&chat), "01");
        assert_eq!(chat.undo().as_deref(), Some("0"));
        assert_eq!(chat.undo(), None);
        assert!(!chat.forget_answer());
    }

    #[test]
    fn the_system_message_is_set_replaced_and_removed() {
        let mut chat = Conversation::new(Some("a"));
        chat.ask("b");
        for (text, expected) in [("c", Some("c")), ("", None), ("d", Some("d"))] {
            chat.set_system(text);
            assert_eq!(chat.system(), expected);
            assert_eq!(chat.chat.messages.last().map(chat_file::content), Some("b"), "the turns are untouched");
        }
        assert_eq!(Conversation::new(None).chat.messages.len(), 0);
    }
}
