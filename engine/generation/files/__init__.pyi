from .made_by import MadeBy as MadeBy
from .request_file import RequestFile as RequestFile
