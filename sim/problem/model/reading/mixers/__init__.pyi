from .choice import mixer_of as mixer_of
