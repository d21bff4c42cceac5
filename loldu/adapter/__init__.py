"""The adapter: a diagonal between two fixed factors of a layer's weight."""

# Importing PEFT registers LoLDU with it (see loldu.peft_hook), which imports modules of this
# package. PEFT comes first, so that none of them is half imported then.
import peft as peft
