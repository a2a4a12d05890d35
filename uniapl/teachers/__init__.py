"""The expert's demonstrations, every one verified: an editor of drafts, or a chat model that is asked."""
