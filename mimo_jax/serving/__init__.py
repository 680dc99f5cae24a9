"""An HTTP endpoint that speaks OpenAI's protocol: chat with and without sound, speech, transcription."""
